"""The weights a stage starts from."""

from __future__ import annotations

from pathlib import Path

from longvita.checkpoint.hf.read_weights import read_weights
from longvita.checkpoint.load import load_weights
from longvita.checkpoint.resume import intact_checkpoint
from longvita.checkpoint.step_folders import is_checkpoint
from longvita.config.schema import Config
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform


def read_initial_weights(models: list[LongVITA], config: Config, groups: ParallelGroups, platform: Platform) -> None:
    """Fill freshly initialised chunks as config.checkpoint says; what it does not name stays fresh.

    First `initial` (a checkpoint of ours, or a folder or Hub id in a Hugging Face layout), then `initial_language` and
    `initial_vision` over it. A collective. Raises CheckpointError.
    """
    sources = config.checkpoint
    if sources.initial is not None:
        folder = Path(sources.initial)
        if is_checkpoint(folder):
            load_weights(models, intact_checkpoint(folder), platform)
        else:
            read_weights(models, sources.initial, groups)
    if sources.initial_language is not None:
        read_weights(models, sources.initial_language, groups, parts=("language",))
    if sources.initial_vision is not None:
        read_weights(models, sources.initial_vision, groups, parts=("vision",))
