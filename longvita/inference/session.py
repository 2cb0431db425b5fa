"""Opens the engine in each process of a generation run: platform, process groups, model, weights."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

from longvita import platforms, processes
from longvita.checkpoint.sources import load_weights
from longvita.config.schema import Config
from longvita.data.tokenizer import load_tokenizer
from longvita.inference.engine import Engine
from longvita.inference.settings import EngineSettings
from longvita.model.build import build_model
from longvita.platforms.base import Platform

CONTROL_TIMEOUT = datetime.timedelta(days=365)
"""Timeout of collectives that wait for a person's input, or for other replicas."""


@contextlib.contextmanager
def open_engine(settings: EngineSettings) -> Iterator[Engine]:
    """Open the engine of this process, in a world of one model replica or several. Process groups end with the block.

    Raises CheckpointError on every rank when the weights cannot be read.
    """
    platform = platforms.get(settings.config.platform)
    platform.activate()
    processes.init_distributed(platform.backend, platform.set_device)
    config = _with_precision(settings, platform)
    tokenizer = load_tokenizer(settings.tokenizer)
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform, fresh=False)
    load_weights(models, settings.model, groups, platform)
    yield Engine(models, config, tokenizer, groups, platform)
    groups.destroy()


def _with_precision(settings: EngineSettings, platform: Platform) -> Config:
    precision = settings.precision
    if precision == "auto":
        # On a CPU, matrix products in bf16 are hundreds of times slower than in fp32.
        precision = "fp32" if platform.device.type == "cpu" else "bf16"
    # FP8 matrix products need multiples of 16 rows; a decode step has one or two.
    training = settings.config.training.model_copy(update={"precision": precision, "fp8": None})
    return settings.config.model_copy(update={"training": training})
