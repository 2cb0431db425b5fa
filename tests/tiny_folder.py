"""A tiny Long-VITA with random weights and a tokenizer made on the spot, for tests of whole commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from longvita.checkpoint.hf import write_long_vita
from longvita.checkpoint.sources import write_checkpoint
from longvita.data.tokenizer import load_transformers_tokenizer
from longvita.model.build import build_model
from longvita.parallel import groups as parallel_groups
from longvita.platforms import get
from longvita.quickstart.tokenizer import train_tokenizer
from tests.distributed.helpers import run_distributed
from tests.tiny import tiny_config

TEXT = "What is in the picture? Name the digit. Which number comes after it in the video? one two three four five"
POSITIONS = 4096


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """The same weights twice."""

    folder: Path
    """The published layout, with its tokenizer."""
    checkpoint: Path
    """A training checkpoint that names the tokenizer's folder."""


def write_tiny_model(root: Path) -> TinyModel:
    """Writes a model and its tokenizer below `root`."""
    model = TinyModel(root / "long_vita", root / "checkpoint")
    entries = train_tokenizer([TEXT], root / "tokenizer")
    run_distributed(_write, 1, model, str(root / "tokenizer"), entries)
    return model


def _write(rank: int, world: int, model: TinyModel, tokenizer: str, entries: int) -> None:
    platform = get("cpu")
    platform.activate()
    # Every id has a text; TP2 needs an even number of rows.
    sizes = {"vocab_size": entries + entries % 2, "max_position_embeddings": POSITIONS}
    config = tiny_config(model={"language": sizes, "init_method_std": 0.2}, data={"tokenizer": tokenizer})
    groups = parallel_groups.initialize(config, platform)
    models = build_model(config, groups, platform)
    write_long_vita(models, config, model.folder, groups, load_transformers_tokenizer(Path(tokenizer)))
    write_checkpoint(models, config, model.checkpoint, platform)
    groups.destroy()
