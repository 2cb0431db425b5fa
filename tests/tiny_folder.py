"""A tiny Long-VITA with random weights and a tokenizer made on the spot, for tests of whole commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from longvita.checkpoint.hf.write_weights import write_weights
from longvita.checkpoint.save import save_weights
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer, load_transformers_tokenizer
from longvita.model.build import build_model
from longvita.platforms import get
from tests.distributed.helpers import run_distributed
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer

TEXT = "What is in the picture? Name the digit. Which number comes after it in the video? one two three four five"
POSITIONS = 4096


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """The same weights twice."""

    folder: Path
    """The published layout, with its tokenizer."""
    checkpoint: Path
    """A training checkpoint that names the tokenizer's folder."""


def write_tiny_model(root: Path, says: str = "") -> TinyModel:
    """Writes a model and its tokenizer below `root`; with `says`, a letter, one that answers nothing else."""
    model = TinyModel(root / "long_vita", root / "checkpoint")
    entries = train_tokenizer([TEXT], root / "tokenizer")
    run_distributed(_write, 1, model, str(root / "tokenizer"), entries, says)
    return model


def _write(rank: int, world: int, model: TinyModel, tokenizer: str, entries: int, says: str) -> None:
    platform = get("cpu")
    platform.activate()
    # Every id has a text; TP2 needs an even number of rows.
    sizes = {"vocab_size": entries + entries % 2, "max_position_embeddings": POSITIONS}
    config = tiny_config(model={"language": sizes, "init_method_std": 0.2}, data={"tokenizer": tokenizer})
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform)
    if says:
        _let_it_say(models[0], load_tokenizer(tokenizer), says)
    write_weights(models, model.folder, groups, tokenizer=load_transformers_tokenizer(Path(tokenizer)))
    save_weights(models, config, model.checkpoint, platform)
    groups.destroy()


@torch.no_grad()
def _let_it_say(model: torch.nn.Module, tokenizer: LongVITATokenizer, letter: str) -> None:
    """Every token leads to the letter, and the letter to the end of the turn, whatever stands before them."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    (token,) = tokenizer.encode(letter)
    embeddings = weights["language_model.embedding.word_embeddings.weight"]
    output = weights["language_model.output_layer.weight"]
    embeddings[:, 0] = 1.0
    embeddings[token, :2] = torch.tensor([0.0, 1.0])
    output[token, 0] = 1.0
    output[tokenizer.end_of_turn, 1] = 1.0
