"""`longvita convert` between Hugging Face formats, as a command."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.media_limits import read_media_limits, write_media_limits
from longvita.checkpoint.manifest import MANIFEST
from longvita.checkpoint.step_folders import CONFIG
from longvita.cli import app
from longvita.commands import convert
from longvita.config import dump
from longvita.config.schema import DataConfig
from longvita.convert.request import ConversionRequest
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one picture"], folder)
    return folder


def test_to_internvl_and_back(golden: Path, tmp_path: Path, tokenizer: Path):
    native, back = tmp_path / "native", tmp_path / "back"
    options = ["--format", "internvl", "--tokenizer", str(tokenizer), "--max-shard-size", "300KB", "--json"]
    done = CliRunner().invoke(app, ["convert", "--from", str(golden / "model"), "--to", str(native), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["to"], report["format"]) == (str(native), "internvl")
    assert report["bytes"] > 1_000_000
    assert len(list(native.glob("model-*.safetensors"))) > 1
    limits = DataConfig(max_num_tiles=6, max_num_frames=330)
    write_media_limits(native, limits)
    done = CliRunner().invoke(app, ["convert", "--from", str(native), "--to", str(back)])
    assert done.exit_code == 0, done.output
    assert str(back) in done.output
    wanted, found = (load_file(folder / "model.safetensors") for folder in (golden / "model", back))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (back / "tokenizer.json").is_file(), "the source's own tokenizer goes with it"
    assert read_media_limits(back) == limits, "and so do the tiles and frames it was trained with"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_format": "onnx"}, "--format 'onnx' is none of long_vita, internvl, checkpoint"),
        ({"dtype": "int8"}, "--dtype 'int8' is none of bf16, fp32"),
        ({"target_format": "internvl"}, "no tokenizer"),
        ({"max_shard_size": "big"}, "max_shard_size 'big'"),
        ({"optimizer": "torch"}, "none of fully_reshardable, dp_reshardable"),
        ({"optimizer": "dp_reshardable", "target_format": "checkpoint"}, "from a training checkpoint"),
    ],
)
def test_options_that_are_refused(golden: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        convert.convert(str(golden / "model"), str(tmp_path / "x"), **options)
    assert not (tmp_path / "x").exists()


def test_a_folder_in_use_is_left_alone(golden: Path, tmp_path: Path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="is there already and not empty"):
        convert.convert(str(golden / "model"), str(tmp_path))
    assert (tmp_path / "precious").read_text() == "x"


def test_the_tool_under_its_known_name(
    repository: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    target = tmp_path / "out"
    arguments = ["convert_checkpoint.py", "--from", str(golden / "model"), "--to", str(target), "--dtype", "bf16"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(repository / "tools" / "convert_checkpoint.py"), run_name="__main__")
    assert ended.value.code in (0, None)
    assert str(target) in capsys.readouterr().out
    assert {value.dtype for value in load_file(target / "model.safetensors").values()} == {torch.bfloat16}


def test_uneven_stages_are_those_of_the_run_whose_optimizer_is_converted(tmp_path: Path):
    layout = {"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 1}
    config = tiny_config(model={"language": {"num_layers": 4}}, layout=layout)
    (tmp_path / CONFIG).write_text(json.dumps(dump(config)))
    (tmp_path / MANIFEST).touch()
    request = ConversionRequest(str(tmp_path), "folder", "checkpoint", optimizer="fully_reshardable")
    same, other = (convert._config(request, text, "cpu", DataConfig()).layout for text in ("pp=2", "pp=4"))
    assert (same.pipeline_parallel, same.num_layers_in_first_pipeline_stage) == (2, 1)
    assert (other.pipeline_parallel, other.num_layers_in_first_pipeline_stage) == (4, None)
