from types import SimpleNamespace

import pytest

from longvita.training.step import TrainingError, _Counter
from tests.tiny import micro_batch, tiny_config

ALONE = SimpleNamespace(vision_rank=0, vision_size=1, is_first_stage=True)


def two_lengths():
    short, long = tiny_config(), tiny_config(data={"sequence_length": 96})
    return [micro_batch([0], short, ALONE), micro_batch([1], long, ALONE)]


def test_pipeline_stages_take_one_length():
    counted = iter(_Counter(iter(two_lengths()), expected_tokens=64, fixed_shape=True))
    next(counted)
    with pytest.raises(TrainingError, match="96 tokens after one of 64"):
        next(counted)


def test_without_a_pipeline_lengths_may_differ_and_padding_is_no_work():
    batches = two_lengths()
    counter = _Counter(iter(batches), expected_tokens=64, fixed_shape=False)
    assert list(counter) == batches
    padding = sum(batch.padding_tokens for batch in batches)
    assert counter.padding_tokens == padding > 0
    assert counter.work.tokens == 64 + 96 - padding
    assert counter.work.tiles == 2
