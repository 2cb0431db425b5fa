"""A conversion as the command line asks for it: the options, their checks, precision and tokenizer of the source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.tokenizer_files import Tokenizer
from longvita.checkpoint.sources import is_training_checkpoint, training_config
from longvita.convert.optimizer_format import FORMATS as OPTIMIZER_FORMATS
from longvita.data.tokenizer import load_transformers_tokenizer

FORMATS = ("long_vita", "internvl", "checkpoint")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


@dataclasses.dataclass(frozen=True)
class ConversionRequest:
    """Values of the command line, which go to every rank."""

    source: str
    """Training checkpoint, Hugging Face folder or Hub id."""
    target: str
    """Folder that is written."""
    format: str = "long_vita"
    """One of FORMATS."""
    tokenizer: str | None = None
    """Tokenizer folder; the source's own when None."""
    dtype: Literal["bf16", "fp32"] | None = None
    """The source's when None."""
    max_shard_size: str = "5GB"
    """Largest safetensors file."""
    optimizer: str | None = None
    """Format of the optimizer's state in a checkpoint made from a training checkpoint; None for no optimizer."""

    def check(self) -> None:
        """Raise CheckpointError for options that do not fit each other, or a target in use."""
        if self.format not in FORMATS:
            raise CheckpointError(f"--format {self.format!r} is none of {', '.join(FORMATS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise CheckpointError(f"--dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.optimizer is not None:
            if self.optimizer not in OPTIMIZER_FORMATS:
                raise CheckpointError(f"--optimizer {self.optimizer!r} is none of {', '.join(OPTIMIZER_FORMATS)}")
            if self.format != "checkpoint" or not is_training_checkpoint(self.source):
                raise CheckpointError("--optimizer goes with --format checkpoint, from a training checkpoint")

    def check_target(self) -> None:
        """Raise CheckpointError if the target is a file or has files."""
        folder = Path(self.target)
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"--to {folder} is a file; give a new folder")
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"--to {folder} is there already and not empty; give a new folder or empty it")

    @property
    def with_model(self) -> bool:
        """Whether the conversion builds a model; otherwise tensors stream from folder to folder."""
        return is_training_checkpoint(self.source) or self.format == "checkpoint"

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """The precision that is written: the one asked for, else the source's by its config."""
        if self.dtype is not None:
            return self.dtype
        if is_training_checkpoint(self.source):
            return training_config(self.source).training.precision
        config = read_json(local_folder(self.source) / "config.json")
        return "bf16" if config.get("torch_dtype", config.get("dtype")) == "bfloat16" else "fp32"

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer to write: the one asked for, else the source's own; None when there is neither."""
        if self.tokenizer is not None:
            return load_transformers_tokenizer(local_folder(self.tokenizer, weights=False))
        if is_training_checkpoint(self.source):
            name = training_config(self.source).data.tokenizer
            return load_transformers_tokenizer(Path(name)) if name and Path(name).is_dir() else None
        folder = local_folder(self.source)
        held = any((folder / name).is_file() for name in _TOKENIZER_FILES)
        return load_transformers_tokenizer(folder) if held else None
