"""`longvita train --check` refuses a config before any process starts, and names its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import ConfigError
from longvita.planning.hardware import HARDWARE
from tests.e2e.training_material import write_run


def refused(config: Path, *overrides: str) -> str:
    result = CliRunner().invoke(app, ["train", "--check", str(config), *overrides])
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def test_folders_that_cannot_be_made_are_reported_with_their_lines(tmp_path: Path) -> None:
    config, file = write_run(tmp_path), tmp_path / "file"
    file.write_text("no folder")
    text = refused(
        config, f"data.index_cache={file}", f"data.frame_cache={file}/deep", "checkpoint.initial=not/there/at"
    )
    assert "override: data.index_cache = " in text and f"cannot be made: {file} is not a folder" in text
    assert "override: data.frame_cache" in text and "override: checkpoint.initial = not/there/at" in text
    config.write_text(config.read_text().replace(f"output: {tmp_path}/run", f"output: {file}/run"))
    text = refused(config)
    assert text.startswith(f"{config}:2: output = ") and "cannot be made" in text


def test_the_folder_of_the_indexes_next_to_output_can_be_made(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    (tmp_path / "index").write_text("no folder")
    text = refused(config)
    assert "data.index_cache" in text and f"cannot be made: {tmp_path / 'index'} is not a folder" in text


def test_data_are_indexed_before_the_ranks_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a rank of torchrun or srun, which has its device already, the loader does it."""
    indexed: list[int] = []

    def launch(*_arguments: object) -> int:
        indexed.append(len(list((tmp_path / "index").glob("*/meta.json"))))
        return 0

    monkeypatch.setattr("longvita.commands.train.launch", launch)
    command = ["train", str(write_run(tmp_path, data={"index_processes": 0}))]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert CliRunner().invoke(app, command).exit_code == 0
    monkeypatch.delenv("RANK")
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, indexed) == (0, [0, 3])
    assert "3 data files without a current index" in result.stderr


def test_processes_that_make_no_replicas_are_reported_with_their_lines(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    text = refused(config, "layout.tensor_parallel=2", "--processes", "3")
    assert text.startswith("override: layout.tensor_parallel = 2: 3 processes are not a multiple")


def test_refusals_of_the_named_platform_are_reported_before_the_launch(tmp_path: Path) -> None:
    ascend = HARDWARE["ascend-910b-64"].layer_memory.platform
    layout = ["layout.processes=null", "layout.context_parallel=2", "layout.ulysses=2"]
    text = refused(write_run(tmp_path), *layout, f"platform={ascend}")
    assert text.startswith(f"override: layout.ulysses = 2: is refused on {ascend}")


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """A missing folder of the recipes too: no owner on the Hub can be called models."""
    weights = "checkpoint.initial_vision=models/nope"
    text = refused(write_run(tmp_path), "layout.tensor_parallel=2", weights, "--processes", "3")
    assert "override: layout.tensor_parallel = 2: 3 processes are not a multiple" in text
    assert "override: checkpoint.initial_vision = models/nope: is neither a folder here nor a Hub id" in text
