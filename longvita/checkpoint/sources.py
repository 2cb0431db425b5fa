"""Weights by the name a user gives: a training checkpoint of ours, a Hugging Face folder, a Hub id."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from longvita.checkpoint import manifest
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import model_config_from_folder, read_json, write_json
from longvita.checkpoint.hf.hub import local_folder
from longvita.config import dump
from longvita.config.schema import Config, ModelConfig

if TYPE_CHECKING:
    from longvita.model.long_vita import LongVITA
    from longvita.parallel.groups import ParallelGroups

CONFIG = "config.json"
"""The run's config in a training checkpoint of ours."""


def is_training_checkpoint(source: str | Path) -> bool:
    """Whether the name is a checkpoint of ours, a folder of numbered ones, or the output folder of a run."""
    return manifest.is_checkpoint(Path(source).expanduser())


def model_config(source: str | Path) -> ModelConfig:
    """The ModelConfig of any source. Raises CheckpointError when its config is absent or not ours to run."""
    if is_training_checkpoint(source):
        return training_config(source).model
    return model_config_from_folder(local_folder(source, weights=True))


def training_config(source: str | Path) -> Config:
    """The Config that a training checkpoint of ours was made with (of the newest one in a folder of several)."""
    folder = Path(source).expanduser()
    candidates = [folder, *manifest.step_folders(manifest.numbered_root(folder) or folder)]
    found = next((path for path in candidates if (path / CONFIG).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has no {CONFIG}; it is no whole checkpoint")
    return Config.model_validate(read_json(found / CONFIG))


def load_weights(models: Sequence[LongVITA], source: str | Path, groups: ParallelGroups, platform: Any) -> None:
    """Fills built chunks from any source, at any layout. Collective. Raises CheckpointError, see read_weights."""
    if is_training_checkpoint(source):
        from longvita.checkpoint import native

        native.load_weights(list(models), native.intact_checkpoint(Path(source).expanduser()), platform)
    else:
        from longvita.checkpoint.hf.weights import read_weights

        read_weights(models, source, groups)


def write_checkpoint(models: Sequence[LongVITA], config: Config, folder: Path, platform: Any) -> None:
    """Writes weights alone as a checkpoint of ours, which `checkpoint.initial` takes at any layout. Collective.

    The folder must be new or empty. It has a config and a manifest of checksums like those that training writes.
    """
    from megatron.core import dist_checkpointing

    from longvita.checkpoint.snapshot import SnapshotStrategy

    partial = folder.with_name(f".{folder.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    metadata = {"distrib_optim_sharding_type": platform.optimizer_sharding_type, "chained_optim_avoid_prefix": True}
    weights = {f"chunk{index}": model.sharded_state_dict(metadata=metadata) for index, model in enumerate(models)}
    dist_checkpointing.save({"weights": weights}, str(partial), SnapshotStrategy(), content_metadata=metadata)
    if dist.get_rank() == 0:
        write_json(partial / CONFIG, dump(config))
        manifest.write_manifest(partial, {})
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    dist.barrier()
