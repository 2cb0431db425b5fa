"""Limits of tiles and frames that a model was trained with, saved with its weights so that inference uses them too.

Neither Hugging Face format has a place for them: both get a key of ours in config.json, which transformers keeps.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json, write_json
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.sources import is_training_checkpoint, training_config
from longvita.config.schema import DataConfig

KEY = "media_limits"
FIELDS = {"max_num_tiles", "max_num_frames", "max_fps", "frame_sampling"}
"""Fields of the data section."""


def read_media_limits(source: str | Path) -> DataConfig:
    """Read the FIELDS that a source sets, as a data section in which nothing else is set.

    Raises CheckpointError for values that no data section may have.
    """
    if is_training_checkpoint(source):
        return DataConfig(**training_config(source).data.model_dump(include=FIELDS))
    path = local_folder(source) / "config.json"
    found = read_json(path).get(KEY, {})
    try:
        return DataConfig.model_validate({name: found[name] for name in sorted(FIELDS & found.keys())})
    except (ValidationError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {KEY} is {found!r}, which no data section may hold: {error}") from error


def write_media_limits(folder: Path, data: DataConfig) -> None:
    """Add those of a data section's FIELDS that are set to the config.json of a Hugging Face folder."""
    found = data.model_dump(include=FIELDS, exclude_unset=True)
    if found:
        path = folder / "config.json"
        write_json(path, read_json(path) | {KEY: found})
