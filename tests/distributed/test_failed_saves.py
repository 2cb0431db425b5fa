"""Saves that fail on one rank or take too long: all ranks know, training continues, a later save is good."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from longvita.checkpoint import save as save_module
from longvita.checkpoint.background_write import CommonFiles, SnapshotWriter
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.manifest import find_damage
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.step_folders import checkpoint_root, step_folders, step_of
from longvita.training import saving
from longvita.training.events import read_events
from longvita.training.step import TrainingError
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import run_config, run_steps, start, training_run
from tests.e2e.training_material import write_run

STEPS = 6


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def at_each_place(rank: int, world: int, folder: str) -> list[str]:
    state = start(run_config("dp2"))
    root = Path(folder)
    checkpointer = Checkpointer(root, keep=9, platform=state.platform)
    places = [
        (0, Path, "mkdir"),
        (0, CommonFiles, "write"),
        (1, SnapshotWriter, "write"),
        (0, SnapshotWriter.__mro__[1], "finish"),
        (0, save_module, "write_manifest"),
    ]
    messages = []
    for failing_rank, owner, name in places:
        run_steps(state, 1)
        with pytest.MonkeyPatch.context() as patch:
            if rank == failing_rank:
                patch.setattr(owner, name, no_space)
            with pytest.raises(CheckpointError) as caught:
                checkpointer.save(state)
                checkpointer.poll(wait=True)
        messages.append(str(caught.value))
        dist.barrier()  # the first rank deletes
        assert list(root.iterdir()) == [], "what was written is deleted"
    checkpointer.save(state)
    good = checkpointer.poll(wait=True)
    assert good is not None and find_damage(good) == []
    return messages


def test_a_full_disk_on_one_rank_at_any_moment_is_an_error_on_all(tmp_path):
    for messages in run_distributed(at_each_place, 2, str(tmp_path)):
        assert [message.partition("rank ")[2] for message in messages] == [
            f"{rank}: OSError: [Errno 28] No space left on device" for rank in (0, 0, 1, 0, 0)
        ]


def failing_run(rank: int, world: int, config_file: str) -> int:
    run = training_run(config_file, "failing", "dp2", STEPS)
    written, tries = SnapshotWriter.write, []

    def write(self: SnapshotWriter) -> dict:
        tries.append(self)
        return no_space() if rank == 1 and len(tries) <= 2 else written(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SnapshotWriter, "write", write)
        patch.setattr(saving, "RETRY_SECONDS", (0.0,))
        return run.run(lambda _: "")


def saved_steps(output: Path) -> list[int | None]:
    return [step_of(folder) for folder in step_folders(checkpoint_root(output))]


def test_failed_saves_are_tried_again(tmp_path):
    sections = {"save_interval": 2, "keep": 9, "asynchronous": False}
    config_file = write_run(tmp_path, checkpoint=sections, data={"num_workers": 0})
    assert run_distributed(failing_run, 2, str(config_file)) == [0, 0]
    events = [(event["event"], event["step"], event["failures_in_row"]) for event in read_events(tmp_path / "failing")]
    assert events == [("save_failed", 2, 1), ("save_failed", 3, 2)]
    assert saved_steps(tmp_path / "failing") == [6, 4], "step 4 is due by steps, and saved"


def late_run(rank: int, world: int, config_file: str) -> int:
    run = training_run(config_file, "late", "dp2", STEPS)
    written, store_is_back = SnapshotWriter.write, threading.Event()

    def write(self: SnapshotWriter) -> dict:
        assert store_is_back.wait(300)
        return written(self)

    def step(*arguments: object) -> None:
        plain_step(*arguments)
        if run.state.iteration == 5:
            store_is_back.set()

    plain_step = run._step
    run._step = step  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SnapshotWriter, "write", write)
        patch.setattr(saving, "MIN_LATE_SECONDS", 0.1)
        return run.run(lambda _: "")


def test_a_late_save_does_not_hold_training_up(tmp_path):
    config_file = write_run(tmp_path, checkpoint={"save_interval": 2, "keep": 9}, data={"num_workers": 0})
    assert run_distributed(late_run, 2, str(config_file)) == [0, 0]
    events = [(event["event"], event["step"]) for event in read_events(tmp_path / "late")]
    assert events[0] == ("save_late", 4)
    assert saved_steps(tmp_path / "late") == [6, 2]


def hopeless_run(rank: int, world: int, config_file: str) -> str:
    run = training_run(config_file, "hopeless", "dp2", STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SnapshotWriter, "write", no_space)
        with pytest.raises(TrainingError) as caught:
            run.run(lambda _: "")
    return str(caught.value)


@pytest.mark.parametrize(("minutes", "text"), [(1e-6, "saves have failed for"), (60, "rank 0: OSError")])
def test_a_run_without_a_good_save_ends(minutes, text, tmp_path):
    """After its time limit, or after its last step and the tries then."""
    sections = {"save_interval": 2, "asynchronous": False, "max_minutes_unsaved": minutes}
    config_file = write_run(tmp_path, checkpoint=sections, data={"num_workers": 0})
    for message in run_distributed(hopeless_run, 2, str(config_file)):
        assert text in message and "No space left on device" in message
