"""The length limit of an evaluation that names none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from longvita.commands.support.evaluation_request import fitted_settings
from longvita.commands.support.options import EngineOptions
from longvita.evaluation.needle import NeedleInVideo
from longvita.inference.limits import LengthError
from longvita.inference.settings import EngineSettings
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer


@pytest.fixture
def task(tmp_path: Path) -> NeedleInVideo:
    (tmp_path / "film").mkdir()
    for number in range(12):
        Image.new("RGB", (28, 28)).save(tmp_path / "film" / f"{number}.png")
    Image.new("RGB", (28, 28)).save(tmp_path / "needle.png")
    needle = {"image": "needle.png", "question": "Which colour?", "answer": "one two"}
    (tmp_path / "needles.jsonl").write_text(json.dumps(needle))
    return NeedleInVideo(tmp_path, [12], [0.5])


def settings(tmp_path: Path, positions: int) -> EngineSettings:
    train_tokenizer(["Which colour? one two"], tmp_path / "words")
    model = {"language": {"vocab_size": 512, "max_position_embeddings": positions}}
    config = tiny_config(model=model, inference={"max_seq_len": 40, "max_num_frames": 8})
    return EngineSettings("model", config, str(tmp_path / "words"), "auto")


def test_the_limit_is_that_of_the_longest_film(task, tmp_path, capsys):
    fitted = fitted_settings(settings(tmp_path, 4096), EngineOptions(), task)
    limit = fitted.config.inference.max_seq_len
    assert 40 < limit < 100
    assert f"--max-seq-len is {limit}" in capsys.readouterr().err
    with pytest.raises(LengthError, match="--max-seq-len is 40; fix: --lengths up to .* fit, or raise it"):
        fitted_settings(settings(tmp_path, 4096), EngineOptions(max_seq_len=40), task)
    with pytest.raises(LengthError, match="--max-seq-len is 50; fix: --lengths up to [0-9]+ fit$"):
        fitted_settings(settings(tmp_path, 50), EngineOptions(), task)
