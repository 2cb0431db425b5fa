"""Generation at every layout: the golden model's greedy tokens, cached logits, reuse of a conversation's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvita.checkpoint.hf import read_weights
from longvita.checkpoint.hf_config import model_config_from_folder
from longvita.config.schema import Config
from longvita.inference.engine import Engine
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.sampling import Sampling
from longvita.inference.stage import Chunk, TileError
from longvita.model.build import build_model
from longvita.parallel import groups as parallel_groups
from longvita.platforms import get
from tests.distributed.helpers import run_distributed

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
LAYOUTS = {
    "tp1": {},
    "tp2": {"tensor_parallel": 2},
    "tp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "tp2_pp2_sp": {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True},
}
CHUNK_SIZES = (1, 7, 32, 8192)


def world_size(layout: dict[str, Any]) -> int:
    return layout.get("tensor_parallel", 1) * layout.get("pipeline_parallel", 1)


def golden_config(layout: dict[str, Any], chunk_size: int = 8192) -> Config:
    return Config.model_validate(
        {
            "model": model_config_from_folder(GOLDEN).model_dump(),
            "layout": layout,
            "training": {"precision": "fp32"},
            "inference": {"prefill_chunk_size": chunk_size, "max_seq_len": 512},
        }
    )


def golden_engine(layout: dict[str, Any]) -> Engine:
    platform = get("cpu")
    platform.activate()
    config = golden_config(layout)
    groups = parallel_groups.initialize(config.layout, platform)
    models = build_model(config, groups, platform, fresh=False)
    read_weights(models, GOLDEN, groups)
    return Engine(models, config, None, groups, platform)


def golden_prompt() -> tuple[Prompt, dict[str, torch.Tensor]]:
    data = load_file(GOLDEN / "golden.safetensors")
    starts = data["image_indices"][1, :, 0].tolist()
    tiles = data["images"]
    return Prompt(data["input_ids"][0].tolist(), starts, TensorTiles(tiles), ["a", "b", "c"]), data


def with_chunk_size(engine: Engine, size: int) -> None:
    inference = engine.config.inference.model_copy(update={"prefill_chunk_size": size})
    engine.config = engine.config.model_copy(update={"inference": inference})


def greedy_tokens_by_chunk_size(rank: int, world: int, layout: dict[str, Any]) -> dict[int, list[int]]:
    engine = golden_engine(layout)
    _, data = golden_prompt()
    tokens = {}
    for size in CHUNK_SIZES:
        with_chunk_size(engine, size)
        starts = data["image_indices"][1, :, 0]
        tokens[size] = engine.generate_tokens(data["input_ids"], data["images"], starts, 12)
    engine.groups.destroy()
    return tokens


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_greedy_tokens_equal_golden(layout: dict[str, Any]) -> None:
    expected = json.loads((GOLDEN / "golden.json").read_text())["greedy_tokens"]
    for tokens in run_distributed(greedy_tokens_by_chunk_size, world_size(layout), layout):
        assert tokens == dict.fromkeys(CHUNK_SIZES, expected)
