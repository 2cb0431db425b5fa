"""`longvita config show` and the command line's manners."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from longvita import cli
from longvita.config import dump, load, load_with_origins
from longvita.config.show import lines

runner = CliRunner()


def text(loaded, docs=False) -> str:
    return "\n".join(f"{line.text} # {line.comment}" if line.comment else line.text for line in lines(loaded, docs))


@pytest.mark.parametrize("docs", [False, True])
@pytest.mark.parametrize("name", ["train/stage2_general_72b_ascend.yaml", "inference/long_vita_14b_1m.yaml"])
def test_the_listing_is_the_config(repository, name, docs, write_yaml):
    loaded = load_with_origins(repository / "configs" / name, ['name="a: b # c"', "checkpoint.initial=null"])
    listing = text(loaded, docs)
    assert load(write_yaml(listing)) == loaded.config
    assert yaml.safe_load(listing)["name"] == "a: b # c"


def test_each_value_has_its_source(write_yaml):
    model = write_yaml("model:\n  name: small\n", "model.yaml")
    path = write_yaml("include: model.yaml\noptimizer:\n  lr: 1e-3\n")
    by_name = {line.text.strip(): line.comment for line in lines(load_with_origins(path, ["seed=7"]))}
    assert by_name["name: small"] == f"{model}:2"
    assert by_name["lr: 0.001"] == f"{path}:3"
    assert by_name["seed: 7"] == "override"
    assert by_name["clip_grad: 1.0"] == "default"


def test_docs_show_meaning_unit_and_type(write_yaml):
    listing = text(load_with_origins(write_yaml("")), docs=True)
    assert "# Length of a packed sequence, tokens. (int)" in listing
    assert (
        "# Precision of the computation; with bf16, main parameters and gradients stay in fp32. (one of bf16, fp32)"
        in listing
    )


def test_the_command(write_yaml):
    path = write_yaml("optimizer: {lr: 1e-3}\n")
    result = runner.invoke(cli.app, ["config", "show", str(path), "training.train_iterations=5", "--docs"])
    assert result.exit_code == 0
    shown = yaml.safe_load(result.stdout)
    assert shown["training"]["train_iterations"] == 5
    assert shown.keys() == dump(load(path)).keys()


def test_an_error_is_one_clean_message_and_exit_code_2(write_yaml):
    path = write_yaml("optimizer: {lrr: 1e-3}\n")
    command = [sys.executable, "-m", "longvita", "config", "show", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: {path}:1: optimizer.lrr = 0.001: this name is not known",
        "    fix: did you mean optimizer.lr?",
    ]


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken(arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()
