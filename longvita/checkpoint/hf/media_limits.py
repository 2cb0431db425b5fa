"""How a model's pictures and videos were cut in training, kept beside its weights so that inference cuts them the same.

Neither Hugging Face layout has a place for it: both get a key of ours in config.json, which transformers keeps.
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
FIELDS = {"max_num_tiles", "max_num_frames", "max_fps"}
"""Fields of the data section."""


def read_media_limits(source: str | Path) -> DataConfig:
    """A data section with what a source says of its FIELDS; they alone are set in it, and none where it says nothing.

    Raises CheckpointError for values that no data section may have.
    """
    if is_training_checkpoint(source):
        return DataConfig(**training_config(source).data.model_dump(include=FIELDS))
    path = local_folder(source) / "config.json"
    said = read_json(path).get(KEY, {})
    try:
        return DataConfig.model_validate({name: said[name] for name in sorted(FIELDS & said.keys())})
    except (ValidationError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {KEY} is {said!r}, which no data section may say: {error}") from error


def write_media_limits(folder: Path, data: DataConfig) -> None:
    """Adds what is set among a data section's FIELDS to the config.json of a Hugging Face folder."""
    said = data.model_dump(include=FIELDS, exclude_unset=True)
    if said:
        path = folder / "config.json"
        write_json(path, read_json(path) | {KEY: said})
