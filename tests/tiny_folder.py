"""A tiny Long-VITA folder with random weights and a tokenizer made on the spot, for tests of whole commands."""

from __future__ import annotations

from pathlib import Path

from longvita.checkpoint.hf import write_long_vita
from longvita.data.tokenizer import load_transformers_tokenizer
from longvita.model.build import build_model
from longvita.parallel import groups as parallel_groups
from longvita.platforms import get
from longvita.quickstart.tokenizer import train_tokenizer
from tests.distributed.helpers import run_distributed
from tests.tiny import tiny_config

TEXT = "What is in the picture? Name the digit. Which number comes after it in the video? one two three four five"
VOCABULARY = 512
POSITIONS = 4096


def write_tiny_folder(folder: Path) -> Path:
    """Writes the model and its tokenizer into `folder` and returns it."""
    train_tokenizer([TEXT], folder / "tokenizer")
    run_distributed(_write, 1, str(folder))
    return folder


def _write(rank: int, world: int, folder: str) -> None:
    platform = get("cpu")
    platform.activate()
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
    config = tiny_config(model={"language": sizes, "init_method_std": 0.2})
    groups = parallel_groups.initialize(config.layout, platform)
    models = build_model(config, groups, platform)
    tokenizer = load_transformers_tokenizer(Path(folder) / "tokenizer")
    write_long_vita(models, config, Path(folder), groups, tokenizer)
    groups.destroy()
