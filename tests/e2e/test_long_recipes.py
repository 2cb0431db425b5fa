"""The published long-context recipes with a tiny model and a 32nd of their sequence length, on two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from longvita.config import load
from longvita.training.metrics import read_metrics
from tests.conftest import REPOSITORY
from tests.e2e.training_material import log_of, start_train
from tests.tiny import tiny_config
from tests.unit.data.material import VOCABULARY, conversation, picture, write_jsonl, write_tokenizer

TIMEOUT_SECONDS = 280
SHRINK = 32
STEPS = 2
RECIPES = {"stage3_128k": 4096, "stage4_1m": 32768}
FRAMES = {"stage3_128k": 400, "stage4_1m": 3000}
"""Frames of the films, 3 tokens each."""


def write_material(folder: Path, frames: int) -> None:
    """Write films as long as the recipe allows, pictures and long texts."""
    write_tokenizer(folder / "tokenizer")
    (folder / "film").mkdir()
    for number in range(frames):
        Image.new("RGB", (28, 28), (number % 256, number // 256 * 20, 90)).save(folder / "film" / f"{number}.png")
    picture("coffee").resize((64, 48)).save(folder / "coffee.png")
    films = [conversation(f"<video>\nHow many in {n}?", "blue", videos=["film"]) for n in range(60)]
    words = [conversation(f"Count to {n}.", " ".join(str(k) for k in range(1, n))) for n in range(200, 1200, 50)]
    pictures = [conversation("<image>\nWhat?", "red", images=["coffee.png"]) for _ in range(20)]
    for name, samples in (("films", films), ("words", words), ("pictures", pictures)):
        write_jsonl(folder / f"{name}.jsonl", samples)


def overrides(folder: Path, output: Path, length: int, layout: dict) -> list[str]:
    """Overrides that make a recipe small; everything else stays as published."""
    tiny = tiny_config(model={"language": {"vocab_size": VOCABULARY, "max_position_embeddings": 32768}})
    sources = {name: {"data_paths": [f"{name}.jsonl"]} for name in ("films", "words", "pictures")}
    values = {
        "model": tiny.model.model_dump(),
        "layout": layout,
        "platform": "cpu",
        "output": str(output),
        "data.tokenizer": str(folder / "tokenizer"),
        "data.data_root": str(folder),
        "data.media_root": str(folder),
        "data.sequence_length": length,
        "data.max_num_frames": length // 8,
        "data.num_workers": 1,
        "data.dataset": sources,
        "data.validation": {},
        "inference": {},
        "training.precision": "fp32",
        "training.global_batch_size": 1,
        "training.recompute.num_layers": 2,
        "checkpoint.initial": None,
        "logging.tensorboard": False,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_on_two_processes_as_on_one(recipe: str, tmp_path: Path) -> None:
    path, length = REPOSITORY / "configs" / "train" / f"{recipe}.yaml", RECIPES[recipe]
    published = load(path)
    assert published.data.sequence_length == SHRINK * length
    write_material(tmp_path, FRAMES[recipe])
    steps = {}
    for name, layout, iterations in (("two", {"context_parallel": 2}, STEPS), ("one", {}, 1)):
        changes = overrides(tmp_path, tmp_path / name, length, layout)
        changes.append(f"training.train_iterations={iterations}")
        config = load(path, changes)
        assert config.training.trainable == ["projector", "language"]
        assert config.data.isolate_documents == published.data.isolate_documents
        # The log is written next to this file.
        (tmp_path / "recipe.yaml").write_text(f"include: {path}\n")
        process = start_train(tmp_path / "recipe.yaml", *changes)
        assert process.wait(timeout=TIMEOUT_SECONDS) == 0, log_of(tmp_path)
        steps[name] = [line for line in read_metrics(tmp_path / name) if "loss" in line]
    assert [line["step"] for line in steps["two"]] == list(range(1, STEPS + 1))
    two, one = steps["two"][0], steps["one"][0]
    assert two["tokens"] == one["tokens"] > 0.8 * length
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert all(math.isfinite(line["loss"]) for line in steps["two"])
    assert sum(line["tiles"] for line in steps["two"]) >= FRAMES[recipe]
