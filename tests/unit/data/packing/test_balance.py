from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longvita.config.flops import Workload, training_flops
from longvita.config.schema import Config
from longvita.data.packing.balance import WorkModel, divide


@example(2, 6, 2088)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_equally_many_and_no_worse_than_in_order(replicas, places, seed):
    work = np.random.default_rng(seed).lognormal(0, 1, replicas * places)
    owners = divide(work, replicas)
    assert np.bincount(owners, minlength=replicas).tolist() == [places] * replicas
    in_order = work.reshape(places, replicas).sum(0).max()
    assert np.bincount(owners, work).max() <= in_order * (1 + 1e-9)
    np.testing.assert_array_equal(owners, divide(work, replicas))


@pytest.mark.parametrize("seed", range(5))
def test_is_near_the_best_division(seed):
    work = np.random.default_rng(seed).lognormal(0, 0.5, 8)
    best = min(
        max(work[list(own)].sum(), work.sum() - work[list(own)].sum()) for own in itertools.combinations(range(8), 4)
    )
    assert np.bincount(divide(work, 2), work).max() <= 1.02 * best


def test_two_heavy_sequences_go_to_different_replicas():
    owners = divide(np.asarray([9.0, 1, 9, 1, 9, 1, 9, 1]), 4)
    assert sorted(owners[[0, 2, 4, 6]].tolist()) == [0, 1, 2, 3]


def test_sequences_that_cannot_be_divided():
    with pytest.raises(ValueError, match="7 sequences of a step cannot be divided evenly among 2 replicas"):
        divide(np.ones(7), 2)


def test_work_counts_attention_and_tiles():
    config = Config()
    model = WorkModel.of(config)
    lengths, tiles = np.asarray([1000, 3000]), np.asarray([2, 5])
    work = Workload(tokens=4000, attention_pairs=0, tiles=7)
    work.attention_pairs = (1000**2 + 3000**2) // 2
    expected = training_flops(config.model, work, config.training.trainable)
    one = np.zeros(1, int)
    assert model.of_sequences(lengths, tiles, one, isolated=True) == pytest.approx([expected])
    work.attention_pairs = 4000**2 // 2
    expected = training_flops(config.model, work, config.training.trainable)
    assert model.of_sequences(lengths, tiles, one, isolated=False) == pytest.approx([expected])
    both = model.of_sequences(lengths, tiles, np.asarray([0, 1]), isolated=False)
    assert both.sum() == pytest.approx(model.of_sequences(lengths, tiles, one, isolated=True)[0])
    assert both[1] == pytest.approx(model.of_sequences(lengths[1:], tiles[1:], one, isolated=True)[0])
