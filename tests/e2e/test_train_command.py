"""`longvita train` as people run it: by its own launcher, torchrun and srun, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from longvita.checkpoint.step_folders import step_folders, step_of
from longvita.commands import train
from longvita.commands.support.config_file import load_config_with_origins
from longvita.config import ConfigError
from longvita.processes import EXIT_REFUSED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT
from longvita.training.metrics import read_metrics
from tests.distributed.helpers import free_port
from tests.e2e.training_material import STEPS, log_of, losses_of, start, start_train, write_run

MAX_SECONDS = 280
DATA_CHANGED = "the data are not those"


def wait_for_step(process, output, step):
    """Wait until the metrics show a step."""
    deadline = time.monotonic() + MAX_SECONDS
    while max(losses_of(output), default=0) < step:
        assert process.poll() is None, log_of(output.parent)
        assert time.monotonic() < deadline, log_of(output.parent)
        time.sleep(0.05)


def run_under_srun(config):
    """Two processes with the variables that srun gives its tasks."""
    shared = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77", "SLURM_NNODES": "1"}
    port = str(free_port())
    tasks = [
        start_train(config, **shared, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), MASTER_PORT=port)
        for rank in range(2)
    ]
    return [task.wait(timeout=MAX_SECONDS) for task in tasks]


def run_under_torchrun(config, *overrides):
    options = ["--nproc_per_node=2", f"--master_port={free_port()}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "longvita", "train", str(config)]
    return start([*torchrun, *overrides], config.parent).wait(timeout=MAX_SECONDS)


def test_stopped_and_resumed_under_another_launcher_is_the_same_run(tmp_path):
    config, output = write_run(tmp_path), tmp_path / "run"
    unstopped = tmp_path / "unstopped"
    assert run_under_torchrun(config, f"output={unstopped}", "logging.tensorboard=false") == 0, log_of(tmp_path)

    process = start_train(config)
    wait_for_step(process, output, 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=MAX_SECONDS) == EXIT_SIGTERM, log_of(tmp_path)
    stopped = step_of(step_folders(output / "checkpoints")[0])
    assert stopped == max(losses_of(output)) < STEPS
    report = json.loads((output / "report.json").read_text())
    assert (report["reason"], report["iterations"]) == ("sigterm", stopped)

    assert run_under_srun(config) == [0, 0], log_of(tmp_path)
    assert list(losses_of(output)) == list(range(1, STEPS + 1))
    assert losses_of(output) == losses_of(unstopped)
    check_reports(output)
    check_sample_accounting(output, unstopped)
    assert f"resumes from {output}/checkpoints/step_{stopped:08d}" in log_of(tmp_path)
    assert DATA_CHANGED not in log_of(tmp_path)


def check_sample_accounting(output, unstopped):
    """A run that was stopped and resumed has the sample accounting of one that was not."""
    accounting = json.loads((output / "sample_accounting.json").read_text())
    assert accounting == json.loads((unstopped / "sample_accounting.json").read_text())
    assert accounting["sequences"] == 2 * STEPS
    assert accounting["planned"] == accounting["delivered"] > accounting["repeated"] > 0
    assert accounting["sources"]["pictures"]["unusable"] == {"missing_file": 1}
    distinct = sum(source["planned"] - source["repeated"] for source in accounting["sources"].values())
    assert distinct == 12 + 4
    assert "samples of 48 sequences" in log_of(output.parent)


def check_reports(output):
    lines = read_metrics(output)
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        assert line["tokens"] > 0 and line["tokens_per_second"] > 0 and 0 < line["mfu"] < 1
        assert 0 <= line["data_wait_fraction"] <= 1
        assert set(line["source_losses"]) <= {"words", "pictures"}
    assert sum(line["tiles"] for line in steps) > 0
    evaluations = [line for line in lines if "validation" in line]
    assert [line["step"] for line in evaluations] == [10, 20, STEPS]
    assert all(0 < line["validation"]["held_out"] < 10 for line in evaluations)
    report = json.loads((output / "report.json").read_text())
    assert (report["reason"], report["iterations"]) == ("complete", STEPS)
    assert report["tokens"] == sum(line["tokens"] for line in steps)
    assert report["quarantined"] == {
        "samples": 1,
        "reasons": {"missing_file": 1},
        "sources": {"pictures": 1},
    }
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "tensorboard").iterdir())
    kept = [step_of(folder) for folder in step_folders(output / "checkpoints")]
    assert kept == [STEPS, STEPS - 3]


def test_ctrl_c_saves_and_ends_with_its_code(tmp_path):
    config, output = write_run(tmp_path), tmp_path / "run"
    process = start_train(config, "training.train_iterations=1000000", "logging.interval=1000")
    deadline = time.monotonic() + MAX_SECONDS
    while "starts at step 0" not in log_of(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline, log_of(tmp_path)
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=MAX_SECONDS) == EXIT_SIGINT, log_of(tmp_path)
    stopped = step_of(step_folders(output / "checkpoints")[0])
    # The steps since the last written line are in the metrics too.
    assert max(losses_of(output)) == stopped > 0
    report = json.loads((output / "report.json").read_text())
    assert (report["reason"], report["iterations"]) == ("sigint", stopped)
    assert report["tokens"] > 0


def test_time_limit_and_start_from_a_checkpoint(tmp_path):
    config = write_run(tmp_path)
    single = ["layout.processes=1", "data.num_workers=0", "training.train_iterations=1000000"]
    first = start_train(config, *single, "training.time_limit_minutes=0.001")
    assert first.wait(timeout=MAX_SECONDS) == EXIT_TIME_LIMIT, log_of(tmp_path)
    output = tmp_path / "run"
    assert len(step_folders(output / "checkpoints")) == 1

    # Another stage starts from these weights; a layout that does not fit them is refused before it starts.
    second = start_train(
        config,
        "layout.processes=1",
        "training.train_iterations=1",
        f"checkpoint.initial={output}",
        f"output={tmp_path / 'second'}",
    )
    assert second.wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    assert list(losses_of(tmp_path / "second")) == [1]
    third = start_train(config, f"checkpoint.initial={tmp_path / 'nothing'}", f"output={tmp_path / 'third'}")
    assert third.wait(timeout=MAX_SECONDS) == 2
    assert "checkpoint.initial" in log_of(tmp_path) and not (tmp_path / "third").exists()


STAGES_IN_TURN = """
import sys
from longvita.config import load
from longvita.commands.train import train_stages

path, *folders = sys.argv[1:]
layouts = (["layout.tensor_parallel=2"], ["layout.processes=2"], ["layout.pipeline_parallel=2"])
few = ["training.train_iterations=3", "data.num_workers=0"]
stages = [[*few, f"output={folder}", *layout] for folder, layout in zip(folders, layouts)]
for stage, before in zip(stages[1:], folders):
    stage.append(f"checkpoint.initial={before}")
sys.exit(train_stages(*(load(path, stage) for stage in stages)))
"""


def test_stages_in_the_same_processes_are_the_stages_of_several_commands(tmp_path):
    """Each at another layout, from the weights of the one before it."""
    config = write_run(tmp_path)
    together = [str(tmp_path / f"together{number}") for number in range(3)]
    process = start([sys.executable, "-c", STAGES_IN_TURN, str(config), *together], tmp_path)
    assert process.wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    last = tmp_path / "last"
    few = ["training.train_iterations=3", "data.num_workers=0", "layout.pipeline_parallel=2"]
    alone = start_train(config, *few, f"checkpoint.initial={together[1]}", f"output={last}")
    assert alone.wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    assert [list(losses_of(Path(folder))) for folder in together] == [[1, 2, 3]] * 3
    assert losses_of(Path(together[2])) == losses_of(last)


def test_data_that_changed_since_the_checkpoint_are_reported(tmp_path):
    config = write_run(tmp_path)
    short = ["layout.processes=1", "data.num_workers=0", "data.validation={}"]
    assert start_train(config, *short, "training.train_iterations=1").wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write((tmp_path / "held_out.jsonl").read_text())
    assert start_train(config, *short, "training.train_iterations=2").wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    assert DATA_CHANGED in log_of(tmp_path)
    accounting = json.loads((tmp_path / "run" / "sample_accounting.json").read_text())
    assert accounting["data_changed_at"] == [2]


def test_a_held_out_source_that_loses_too_much_ends_the_run_before_its_first_step(tmp_path):
    config = write_run(tmp_path)
    with (tmp_path / "held_out.jsonl").open("a") as file:
        file.write("{}\n" * 98)
    assert start_train(config).wait(timeout=MAX_SECONDS) == EXIT_REFUSED, log_of(tmp_path)
    says = "source 'held_out': 98 of its 100 samples (98.0%) are quarantined"
    assert says in log_of(tmp_path), log_of(tmp_path)
    assert losses_of(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["layout.context_parallel=3", "data.sequence_length=120"], "layout.processes"),
        (["checkpoint.initial_vision=/no/such/folder"], "checkpoint.initial_vision"),
        (["checkpoint.initial=tests/no_such_run"], "checkpoint.initial"),
        (["output=setup.py/runs/new"], "setup.py is not a folder"),
        (["layout.processes=3", "layout.tensor_parallel=2"], "processes"),
    ],
)
def test_refused_before_any_process_starts(tmp_path, monkeypatch, overrides, field):
    for name in [name for name in os.environ if name in ("RANK", "WORLD_SIZE") or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("longvita.commands.train.launch", lambda *_: pytest.fail("processes were started"))
    with pytest.raises(ConfigError, match=field):
        train.train_stages(load_config_with_origins(write_run(tmp_path), overrides, training=True).config)
