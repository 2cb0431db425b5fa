"""Weights by the name a user gives: a training checkpoint of ours, a Hugging Face folder, a Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import model_config_from_folder, read_json
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.step_folders import CONFIG, is_checkpoint, numbered_root, step_folders
from longvita.config.schema import Config, ModelConfig

if TYPE_CHECKING:
    from longvita.model.long_vita import LongVITA
    from longvita.parallel.groups import ParallelGroups
    from longvita.platforms.base import Platform


def is_training_checkpoint(source: str | Path) -> bool:
    """Whether the name is a checkpoint of ours, a folder of numbered ones, or the output folder of a run."""
    return is_checkpoint(Path(source).expanduser())


def model_config(source: str | Path) -> ModelConfig:
    """The ModelConfig of any source. Raises CheckpointError when its config is absent or describes another model."""
    if is_training_checkpoint(source):
        return training_config(source).model
    return model_config_from_folder(local_folder(source, weights=True))


def training_config(source: str | Path) -> Config:
    """The Config of a training checkpoint of ours (of the newest one in a folder of several)."""
    folder = Path(source).expanduser()
    candidates = [folder, *step_folders(numbered_root(folder) or folder)]
    found = next((path for path in candidates if (path / CONFIG).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has no {CONFIG}; it is no complete checkpoint")
    return Config.model_validate(read_json(found / CONFIG))


def load_weights(models: Sequence[LongVITA], source: str | Path, groups: ParallelGroups, platform: Platform) -> None:
    """Fill built chunks from any source, at any layout. A collective.

    Raises CheckpointError when the source is damaged or does not fit the model.
    """
    # Not at the top: a platform must be activated before megatron-core is imported.
    if is_training_checkpoint(source):
        from longvita.checkpoint import load, resume

        load.load_weights(models, resume.intact_checkpoint(Path(source).expanduser()), platform)
    else:
        from longvita.checkpoint.hf.read_weights import read_weights

        read_weights(models, source, groups)
