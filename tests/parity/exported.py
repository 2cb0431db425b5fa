"""A tiny random Long-VITA, exported in both Hugging Face formats, and our own model's logits of some inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvita.checkpoint.hf.read_weights import read_weights
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA
from longvita.checkpoint.hf.write_weights import write_weights
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.model.build import build_model
from longvita.parallel.tile_sharing import assign_tiles
from longvita.platforms import get
from longvita.verify.compare import pipeline_logits
from tools.quickstart.tokenizer import train_tokenizer

TEXT = "What is in the picture? Name the digit. one two three four five six seven eight nine zero"
VOCABULARY = 400


def tiny_config(**language: Any) -> Config:
    """Tiles of 28 pixels with 4 tokens; a projector narrower than the language model, so that padding is needed."""
    return Config.model_validate(
        {
            "seed": 5,
            "platform": "cpu",
            "model": {
                "init_method_std": 0.2,
                "vision": {
                    "num_layers": 2,
                    "hidden_size": 24,
                    "num_attention_heads": 3,
                    "ffn_hidden_size": 40,
                    "patch_size": 7,
                    "image_size": 28,
                    "layer_scale_init": 0.7,
                },
                "projector": {"hidden_size": 20},
                "language": {
                    "num_layers": 3,
                    "hidden_size": 32,
                    "ffn_hidden_size": 48,
                    "num_attention_heads": 4,
                    "num_query_groups": 2,
                    "vocab_size": VOCABULARY,
                    "max_position_embeddings": 1024,
                    **language,
                },
            },
            "training": {"precision": "fp32"},
        }
    )


def world_of_one(config: Config) -> tuple[Any, Any]:
    """Platform and groups of a process of its own; torch.distributed is initialised."""
    platform = get("cpu")
    platform.activate()
    return platform, platform.build_groups(config)


def randomise(models: list[torch.nn.Module]) -> None:
    """Every parameter random, those that start at zero or one included, so that none can be mixed up with another."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def our_logits(models: list[Any], ids: Tensor, tiles: Tensor, tile_starts: Tensor, groups: Any) -> Tensor:
    """Logits [t, v] of one document of ids [t] with tiles [n, 3, H, W]."""
    length = len(ids)
    batch = LocalBatch(
        input_ids=ids[None],
        labels=torch.full((1, length), IGNORED_LABEL),
        position_ids=torch.arange(length)[None],
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        max_seqlen=length,
        tile_starts=tile_starts,
        tile_owners=assign_tiles(len(tile_starts), 1),
        tiles=tiles,
        document_sources=["x"],
        padding_tokens=0,
    )
    logits = pipeline_logits(models, batch, groups)
    assert logits is not None
    return logits


def export(
    rank: int, world: int, folder: str, sizes: dict[str, Any], ids: Tensor, tiles: Tensor, tile_starts: Tensor
) -> Tensor:
    """Write FOLDER/long_vita and FOLDER/internvl of a random model; our logits of the input."""
    config = tiny_config(**sizes)
    platform, groups = world_of_one(config)
    models = build_model(config, groups, platform)
    randomise(models)
    train_tokenizer([TEXT], Path(folder) / "tokenizer")
    tokenizer = Path(folder) / "tokenizer"
    write_weights(models, Path(folder) / "long_vita", groups, LONG_VITA, tokenizer)
    write_weights(models, Path(folder) / "internvl", groups, INTERNVL, tokenizer, max_shard_size="50KB")
    return our_logits(models, ids, tiles, tile_starts, groups)


def logits_from(
    rank: int, world: int, folders: dict[str, str], sizes: dict, ids: Tensor, tiles: Tensor, tile_starts: Tensor
) -> dict[str, Tensor]:
    """Features and logits of a model whose parts come from `folders` (part to folder); the rest is fresh."""
    config = tiny_config(**sizes)
    platform, groups = world_of_one(config)
    models = build_model(config, groups, platform)
    for part, folder in folders.items():
        read_weights(models, folder, groups, parts=tuple(part.split("+")))
    with torch.no_grad():
        hidden = models[0].vision_model(tiles) if len(tiles) else torch.zeros(0)
    return {"hidden": hidden, "logits": our_logits(models, ids, tiles, tile_starts, groups)}
