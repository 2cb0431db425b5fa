"""When a run saves and stops: by the time since its newest checkpoint, by SIGUSR1, and before a step without time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from longvita.checkpoint.step_folders import checkpoint_root, step_folders, step_of
from longvita.processes import EXIT_TIME_LIMIT
from longvita.training.pace import Pace
from longvita.training.signals import RunRequests
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import training_run
from tests.e2e.training_material import write_run

STEPS = 4


def saved_steps(run) -> list[int]:
    return sorted(step_of(folder) or 0 for folder in step_folders(checkpoint_root(Path(run.config.output))))


def requests(rank: int, world: int, config_file: str) -> list:
    by_time = training_run(config_file, "by_time", "dp2", STEPS)
    if rank == 1:
        by_time.saver._tried_at -= 3600  # the clock of one rank is enough
    codes = [by_time.run(lambda _: "")]

    by_signal = training_run(config_file, "by_signal", "dp2", STEPS)
    with RunRequests() as by_signal.requests:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        codes.append(by_signal.run(lambda _: ""))

    in_time = training_run(config_file, "in_time", "dp2", STEPS)
    in_time.requests = RunRequests([3600.0])
    if rank == 0:
        in_time.pace.steps.append(4000.0)
    codes.append(in_time.run(lambda _: ""))
    return [codes, *(saved_steps(run) for run in (by_time, by_signal, in_time))]


def test_when_a_run_saves_and_stops(tmp_path):
    config_file = write_run(tmp_path, checkpoint={"save_interval": 0, "keep": 4}, data={"num_workers": 0})
    for codes, by_time, by_signal, in_time in run_distributed(requests, 2, str(config_file)):
        assert codes == [0, 0, EXIT_TIME_LIMIT]
        assert by_time == by_signal == [1, STEPS]
        assert in_time == [1]
    pace = Pace(tmp_path / "by_time")
    assert 0 < max(pace.saves) < 60 and 0 < max(pace.steps) < 60
