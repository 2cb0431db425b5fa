"""The scans: the fixed split and the drawings."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tools.quickstart import digits


def test_split_is_fixed_and_complete():
    data = digits.load()
    assert (len(data.train), len(data.held_out)) == (1797 - 359, 359)
    assert sorted([*data.train, *data.held_out]) == list(range(1797))
    # A change of the split would let an old checkpoint be scored on scans it was trained on.
    assert hashlib.sha256(data.held_out.astype("<i8").tobytes()).hexdigest()[:16] == "9e6b4549bec39d6b"


def test_every_digit_is_held_out():
    data = digits.load()
    assert set(data.labels[data.held_out]) == set(range(10))


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'train' or 'held_out'"):
        digits.load().part("test")


def test_drawing_without_strength_shows_the_scan():
    scan = digits.load().scans[0]
    picture = digits.draw(scan, np.random.default_rng(0), 0.0)
    assert picture.shape == (56, 56, 3)
    assert picture.dtype == np.uint8
    blocks = picture[..., 0].reshape(8, 7, 8, 7).mean(axis=(1, 3))
    assert np.corrcoef(blocks.ravel(), scan.ravel())[0, 1] > 0.95


def test_drawings_depend_only_on_strength_and_seed():
    scan = digits.load().scans[1]
    first, again, other = (digits.draw(scan, np.random.default_rng(seed), 1.0) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    plain = digits.draw(scan, np.random.default_rng(1), 0.0).astype(int)
    gentle = digits.draw(scan, np.random.default_rng(1), 1 / 3).astype(int)
    assert abs(gentle - plain).mean() < abs(first.astype(int) - plain).mean()
