"""A rank that stands still: the run ends with a code of its own, and its folder says which rank it was and where."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import pytest

from longvita.processes import EXIT_STALLED
from longvita.training import watchdog
from longvita.training.events import read_events
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import training_run
from tests.e2e.training_material import write_run

BAD_STEP, BAD_RANK = 3, 1


def stand_still(kind: str) -> None:
    if kind == "sleeps":
        time.sleep(600)
    elif kind == "holds the interpreter":
        ctypes.PyDLL(None).sleep(600)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


def stalled_run(rank: int, world: int, config_file: str, kind: str) -> None:
    run = training_run(config_file, "stalled", "dp2", 6)
    plain_step = run._step

    def step(*arguments: object) -> None:
        if rank == BAD_RANK and run.state.iteration + 1 == BAD_STEP:
            stand_still(kind)
        plain_step(*arguments)

    run._step = step  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "BEAT_SECONDS", 0.25)
        patch.setattr(watchdog, "REPORT_SECONDS", 3.0)
        run.run(lambda _: "")


@pytest.mark.parametrize("kind", ["sleeps", "holds the interpreter", "is stopped"])
def test_a_rank_that_stands_still_is_named(kind, tmp_path):
    settings = {"watch": {"factor": 4, "min_seconds": 4.0}}
    config_file = write_run(tmp_path, training=settings, data={"num_workers": 0, "sample_timeout_seconds": 1.0})
    with pytest.raises(RuntimeError, match=f"exited with code {EXIT_STALLED}"):
        run_distributed(stalled_run, 2, str(config_file), kind)
    (event,) = read_events(tmp_path / "stalled")
    assert (event["event"], event["step"]) == ("stall", BAD_STEP)
    (lagging,) = event["lagging"]
    assert lagging["rank"] == BAD_RANK
    assert (lagging["silent_seconds"] > 0) == (kind != "sleeps")
    frames = event["stacks"][str(BAD_RANK)]
    if kind == "is stopped":
        assert frames == [], "a stopped process runs no code at all"
    else:
        assert "in stand_still" in frames[0]
    assert any("finish_grad_sync" in frame for frame in event["waiting_in"]), "where the first rank waits"
