"""`longvita verify` on the golden model: every layout within tolerance, and a changed model beyond it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvita.commands import verify as verify_command
from longvita.commands.support import model_ranks
from longvita.commands.verify import print_checks
from longvita.config.schema import LayoutConfig
from longvita.errors import UserError
from longvita.verify.compare import Check

GRADIENTS = {
    "grad lm_head.weight",
    "grad model.embed_tokens.weight",
    "grad model.layers.0.self_attn.q_proj.weight",
    "grad model.vision_model.embeddings.position_embedding",
    "grad model.vision_model.encoder.layers.0.attn.qkv.weight",
    "grad model.vision_projection.mlp.2.weight",
}


def verify(repository: Path, model: Path, golden: Path, layout: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "longvita", "verify", str(model), "--golden", str(golden), "--layout", layout]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *options], cwd=repository, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("layout", ["tp=1", "tp=2", "tp=2,sp=true", "pp=2", "tp=2,pp=2,sp=true", "cp=2", "pp=2,cp=2"])
def test_every_layout_agrees_with_the_golden_vectors(repository: Path, golden: Path, layout: str):
    done = verify(repository, golden / "model", golden / "model", layout, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    checks = {check["name"]: check for check in result["checks"]}
    assert checks.keys() == {"image features", "logits", "loss", "greedy tokens"} | GRADIENTS
    assert result["passed"]
    for name, check in checks.items():
        limit = 2e-4 if name in ("image features", "logits") else 1e-5 if name == "loss" else 1e-3
        assert check["tolerance"] == (0 if name == "greedy tokens" else limit)
        assert check["difference"] <= check["tolerance"], name


def test_a_changed_model_is_beyond_the_tolerance(repository: Path, golden: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(golden / "model", model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"][0, 0] += 0.5
    save_file(tensors, model / "model.safetensors")
    done = verify(repository, model, golden / "model", "tp=1", "--json")
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check["passed"] for check in json.loads(done.stdout)["checks"]}
    assert not checks["logits"]
    assert not checks["loss"]
    assert checks["image features"], "the change is in the language model"


def test_an_absent_golden_vector_is_printed_as_such(golden: Path, capsys: pytest.CaptureFixture):
    layout = LayoutConfig(tensor_parallel=2, sequence_parallel=True)
    checks = [
        Check("image features", 1e-6, 2e-4),
        Check("loss", 1.0, 1e-5),
        Check("logits", None, 2e-4, "not among the golden vectors"),
        Check("grad x", float("inf"), 1e-3, "the model has no such tensor"),
    ]
    assert [check.passed for check in checks] == [True, False, True, False]
    print_checks(checks, "MODEL", layout, as_json=False)
    text = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "tp=2,sp=true" in text
    assert "BEYOND" in lines["loss"]
    assert "1.00e+00" in lines["loss"]
    assert "ok" in lines["image features"]
    assert "not among the golden vectors" in lines["logits"]
    print_checks(checks, "MODEL", layout, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert [check["difference"] for check in found["checks"]] == [1e-6, 1.0, None, None]


@pytest.mark.parametrize(
    "layout, message",
    [
        ("tp=3", "tensor_parallel"),
        ("tp=2,sp=yes", "'sp=yes' is not valid"),
        ("dp=2", "'dp=2' is not valid"),
        ("pp=3", "the layers do not fit the stages"),
    ],
)
def test_a_layout_that_does_not_fit_ends_before_any_process_starts(
    golden: Path, layout: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_ranks, "launch", lambda *arguments: pytest.fail("a process was started"))
    with pytest.raises(UserError, match=message):
        verify_command.verify(str(golden / "model"), str(golden / "model"), layout)


def test_a_damaged_model_ends_with_one_message(repository: Path, golden: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(golden / "model", model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"] = torch.zeros(64, 159)
    save_file(tensors, model / "model.safetensors")
    done = verify(repository, model, golden / "model", "pp=2")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "(64, 159)" in errors[0]
    assert "(64, 160)" in errors[0]
    assert "model.layers.3.mlp.down_proj.weight" in errors[0]
