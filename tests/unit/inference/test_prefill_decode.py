"""Where an answer ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from longvita.inference.engine import Engine
from longvita.inference.prefill_decode import decode
from longvita.inference.sampling import Sampler, Sampling

ALONE = SimpleNamespace(is_last_stage=True, vision_rank=0, vision_size=1, pp_size=1)
WORDS = 10


def logits_of(token: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), WORDS).float()


class Script:
    """A stage that gives fixed tokens."""

    groups, device = ALONE, "cpu"

    def __init__(self, *tokens: int):
        self.tokens = list(tokens)

    def run(self, chunk, cache) -> torch.Tensor:
        return logits_of(self.tokens.pop(0))


@pytest.mark.parametrize(
    ("stop_ids", "limit", "expected"),
    [((7,), 9, [3, 5, 7]), ((), 4, [3, 5, 7, 1]), ((3,), 9, [3]), ((9,), 2, [3, 5])],
)
def test_new_tokens_end_with_a_stop_token_or_at_the_limit(stop_ids, limit, expected):
    sampler = Sampler(Sampling(max_new_tokens=limit))
    assert list(decode(Script(5, 7, 1, 2), None, logits_of(3), sampler, limit, stop_ids)) == expected


@pytest.mark.parametrize("stop", [8, 9])
def test_an_answer_ends_before_the_token_that_ends_its_turn(stop, monkeypatch):
    tokenizer = SimpleNamespace(
        end_of_turn=8, padding=9, decode=lambda ids, skip_special_tokens: "".join(f"w{i} " for i in ids)
    )
    engine = object.__new__(Engine)
    engine.tokenizer = tokenizer

    def stream(prompt, sampling, stop_ids, progress, observer):
        return decode(Script(2, stop, 4, 4), None, logits_of(1), Sampler(sampling), sampling.max_new_tokens, stop_ids)

    monkeypatch.setattr(engine, "stream", stream)
    assert "".join(engine.answer(None, Sampling(max_new_tokens=4))) == "w1 w2 "
