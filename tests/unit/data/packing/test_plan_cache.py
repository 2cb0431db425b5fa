from __future__ import annotations

import os
import time

import numpy as np
import pytest

from longvita.data.mix.mixture import shuffle
from longvita.data.packing import plan_cache
from longvita.data.packing.packer import EpochPlan
from longvita.data.packing.plan_cache import StoredPlan, cached_plan, plan_name

LENGTHS = np.random.default_rng(0).integers(1, 100, 2000)
TAKEN = np.arange(2000)
SAMPLES = plan_cache.MIN_SAMPLES


def make():
    samples = shuffle(TAKEN, 0, 0)
    return EpochPlan(samples, LENGTHS[samples], 100, 0, 0)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_is_stored_in_the_meantime_and_then_mapped(tmp_path):
    first = cached_plan(tmp_path, "plan-x", SAMPLES, make)
    assert isinstance(first, EpochPlan)
    wait_for(tmp_path / "plan-x")
    second = cached_plan(tmp_path, "plan-x", SAMPLES, lambda: pytest.fail("packed again"))
    assert isinstance(second, StoredPlan)
    assert (second.num_sequences, second.fill) == (first.num_sequences, pytest.approx(first.fill))
    for number in range(first.num_sequences):
        np.testing.assert_array_equal(second.sequence(number), first.sequence(number))
    assert second.sequence(first.num_sequences) is None
    for mapped, packed in zip(second.flat(), first.flat(), strict=True):
        np.testing.assert_array_equal(mapped, packed)
    samples, bounds = first.flat()
    np.testing.assert_array_equal(samples[bounds[3] : bounds[4]], first.sequence(3))
    assert bounds[-1] == len(samples) == len(TAKEN)


def test_a_folder_that_cannot_be_written_to_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached_plan(tmp_path / "file" / "below", "plan-x", SAMPLES, make).num_sequences == make().num_sequences


def test_half_of_a_plan_is_never_read(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise OSError("disk full")

    monkeypatch.setattr(plan_cache.os, "rename", fail)
    plan_cache._store(tmp_path / "plan-x", make())
    assert not (tmp_path / "plan-x").exists()
    assert isinstance(cached_plan(tmp_path, "plan-x", SAMPLES, make), EpochPlan)


def test_small_plans_are_packed_again(tmp_path):
    for _ in range(2):
        assert isinstance(cached_plan(tmp_path, "plan-x", SAMPLES - 1, make), EpochPlan)
    assert list(tmp_path.iterdir()) == []


def test_the_plans_used_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_cache, "MAX_PLANS", 3)
    for number in range(5):
        plan_cache._store(tmp_path / f"plan-{number}", make())
        os.utime(tmp_path / f"plan-{number}", (number, number))
        if number == 3:  # Plan 1 is read: it is the newest now.
            assert isinstance(cached_plan(tmp_path, "plan-1", SAMPLES, make), StoredPlan)
    assert sorted(path.name for path in tmp_path.glob("plan-*")) == ["plan-1", "plan-3", "plan-4"]


def test_the_name_depends_on_every_input():
    names = {
        plan_name(TAKEN, LENGTHS, 100, 0, 0),
        plan_name(TAKEN[::-1], LENGTHS[::-1], 100, 0, 0),
        plan_name(TAKEN, LENGTHS + 1, 100, 0, 0),
        plan_name(TAKEN, LENGTHS, 101, 0, 0),
        plan_name(TAKEN, LENGTHS, 100, 1, 0),
        plan_name(TAKEN, LENGTHS, 100, 0, 1),
    }
    assert len(names) == 6
    assert plan_name(TAKEN.astype(np.int32), LENGTHS.astype(np.int32), 100, 0, 0) in names
