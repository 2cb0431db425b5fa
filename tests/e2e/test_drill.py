"""The drill: kill -9 in the middle of a run, three times, each time resumed at another layout."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from longvita.checkpoint import manifest
from longvita.checkpoint.step_folders import step_folders, step_of
from tests.e2e.training_material import STEPS, log_of, losses_of, start_train, write_run

MAX_SECONDS = 280
LAYOUTS = [
    ["layout.tensor_parallel=2", "layout.sequence_parallel=true"],
    ["layout.pipeline_parallel=2"],
    [],
    ["layout.tensor_parallel=2"],
]
"""Overrides of one start each; the last one runs to the end."""


def kill_at_a_random_moment(process, output, chance):
    """Kill the complete process group some time after its first new step."""
    done = max(losses_of(output), default=0)
    wanted = min(done + chance.randint(1, 7), STEPS - 2)
    deadline = time.monotonic() + MAX_SECONDS
    while max(losses_of(output), default=0) < wanted:
        assert process.poll() is None, log_of(output.parent)
        assert time.monotonic() < deadline, log_of(output.parent)
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.long
def test_killed_three_times_the_run_is_the_same(tmp_path):
    seed = time.time_ns()
    print(f"seed of the moments: {seed}")
    chance = random.Random(seed)
    config = write_run(tmp_path)
    unstopped, output = tmp_path / "unstopped", tmp_path / "run"
    assert start_train(config, f"output={unstopped}").wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)

    starts = []
    for layout in LAYOUTS[:-1]:
        process = start_train(config, *layout)
        kill_at_a_random_moment(process, output, chance)
        newest = step_folders(output / "checkpoints")
        starts.append(step_of(newest[0]) if newest else 0)
    assert start_train(config, *LAYOUTS[-1]).wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)

    expected, found = losses_of(unstopped), losses_of(output)
    assert list(found) == list(range(1, STEPS + 1))
    errors = {step: abs(found[step] - expected[step]) / expected[step] for step in found}
    assert max(errors.values()) <= 1e-4, errors
    assert all(errors[start + 1] <= 1e-6 for start in starts), (starts, errors)
    checkpoints = output / "checkpoints"
    assert [folder.name for folder in checkpoints.iterdir() if folder.name.startswith(".")] == []
    assert all(manifest.find_damage(folder) == [] for folder in step_folders(checkpoints))
