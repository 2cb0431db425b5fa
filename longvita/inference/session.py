"""What every process of a generation run does around its work: platform, process groups, weights."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch.distributed as dist

from longvita import launcher, platforms
from longvita.checkpoint.sources import load_weights
from longvita.config.schema import Config
from longvita.errors import UserError
from longvita.inference.engine import Engine
from longvita.inference.processes import open_tokenizer
from longvita.inference.settings import Settings
from longvita.model.build import build_model
from longvita.parallel import groups as parallel_groups

_T = TypeVar("_T")
CONTROL_TIMEOUT = datetime.timedelta(days=365)
"""How long processes wait for one that a person types into, or for other replicas."""


@contextlib.contextmanager
def open_engine(settings: Settings) -> Iterator[Engine]:
    """The engine of this process, in a world of one model replica or several; the process groups end with the block.

    Raises CheckpointError on every rank when the weights cannot be read.
    """
    platform = platforms.get(settings.config.platform)
    platform.activate()
    launcher.init_distributed(platform)
    try:
        config = _with_precision(settings, platform)
        tokenizer = open_tokenizer(settings.tokenizer)
        groups = parallel_groups.initialize(config, platform)
        models = build_model(config, groups, platform, fresh=False)
        load_weights(models, settings.model, groups, platform)
        yield Engine(models, config, tokenizer, groups, platform)
        groups.destroy()
    finally:
        dist.destroy_process_group()


def _with_precision(settings: Settings, platform: Any) -> Config:
    precision = settings.precision
    if precision == "auto":
        # bf16 matrix products are some hundred times slower than fp32 ones on the host.
        precision = "fp32" if platform.device.type == "cpu" else "bf16"
    # FP8 products take rows in sixteens, and decoding has one or two.
    training = settings.config.training.model_copy(update={"precision": precision, "fp8": None})
    return settings.config.model_copy(update={"training": training})


def together(work: Callable[[], _T], *groups: dist.ProcessGroup | None) -> _T:
    """The result of `work`, or on every rank the UserError that one of them met: alone, it would leave others waiting.

    The ranks are those of the world, or those that are reached through one group after the other.
    """
    result, error = None, ""
    try:
        result = work()
    except UserError as found:
        error = str(found)
    for group in groups or (None,):
        errors = [error] * (dist.get_world_size(group) if dist.is_initialized() else 1)
        if len(errors) > 1:
            dist.all_gather_object(errors, error, group=group)
        error = next(filter(None, errors), "")
    if error:
        raise UserError(error)
    return cast(_T, result)
