"""`longvita train`: what is refused before any process starts, and the start of the processes."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longvita import launcher, platforms
from longvita.config import Config, ConfigError, check_world_size, dump
from longvita.config.checks import replica_size
from longvita.config.errors import Problem
from longvita.errors import UserError
from longvita.platforms import environment
from longvita.training.signals import EXIT_FAILED, EXIT_REFUSED

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PAGES = ("models", "datasets", "spaces", "docs")
"""Nobody can have these names on the Hub: they are pages of huggingface.co."""


def train(*stages: Config) -> int:
    """Train the stages that the configs describe, one after the other, in as many processes as the first one asks for.

    The exit code; a stage that does not end well is the last. Under torchrun or srun this process is one of theirs.
    Raises ConfigError for what can be known beforehand.
    """
    first = stages[0]
    world = launcher.world_size_of_launcher() or _own_processes(first)
    for number, config in enumerate(stages):
        check(config, [earlier.output for earlier in stages[:number]])
        check_world_size(config, world)
    payload = {"stages": [dump(config) for config in stages]}
    return launcher.launch("longvita.training.command:run", payload, world, environment.defaults(first.platform))


def report_launch(config: Config, processes: int | None = None) -> None:
    """Print how `train` would start: `name=value` lines, and exports of a shell with their reasons.

    processes: how many a launcher will bring; those of the config when absent.
    """
    world = processes or _own_processes(config)
    print(f"name={config.name}\nplatform={config.platform}\nprocesses={world}\noutput={config.output}")
    variables = launcher.with_defaults(environment.defaults(config.platform))
    for setting in environment.settings(config.platform):
        print(f"export {setting.name}={variables[setting.name]}  # {setting.why}")


def check_launch(config: Config, processes: int | None = None) -> None:
    """Refuse what `train` would in so many processes, and start nothing; of a platform that the config names also what
    its processes would refuse, wherever this runs. Raises ConfigError.
    """
    problems = [] if config.platform == "auto" else platforms.named(config.platform).problems(config)
    for look in (check, functools.partial(check_world_size, world_size=processes or _own_processes(config))):
        try:
            look(config)
        except ConfigError as error:
            problems = [*error.problems, *problems]
    if problems:
        raise ConfigError(problems)


def _own_processes(config: Config) -> int:
    """Processes that `train` starts by itself."""
    return config.layout.processes or replica_size(config)


def check(config: Config, made_before: Sequence[str] = ()) -> None:
    """Refuse what would only fail later. Raises ConfigError with every problem found.

    made_before: output folders of the stages before it, which are not there yet.
    """
    problems = []
    for field in ("initial", "initial_language", "initial_vision"):
        name = getattr(config.checkpoint, field)
        if name in (None, *made_before):
            continue
        if not Path(name).is_dir() and not _is_hub_id(name):
            message, way_out = "is neither a folder here nor a Hub id (OWNER/NAME)", "check the path"
            problems.append(Problem(message, f"checkpoint.{field}", name, way_out=way_out))
    caches = {"data.index_cache": config.data.index_cache, "data.frame_cache": config.data.frame_cache}
    for field, folder in {"output": config.output, **caches}.items():
        if folder is not None:
            problems += _folder_problems(field, folder)
    if problems:
        raise ConfigError(problems)


def _folder_problems(field: str, name: str) -> Iterator[Problem]:
    """Why a folder that a run writes to cannot be made."""
    folder = Path(name).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        message = f"cannot be made: {place} is {'not writable' if place.is_dir() else 'not a folder'}"
        yield Problem(message, field, name, way_out="another folder")


def _is_hub_id(name: str) -> bool:
    """Whether a name that is no folder here can be OWNER/NAME; not when its first part is a folder, a mistyped path,
    nor when it is one of the Hub's own pages, such as the models/ of the recipes.
    """
    owner = name.partition("/")[0]
    return _HUB_ID.fullmatch(name) is not None and owner not in _HUB_PAGES and not Path(owner).is_dir()


def run(payload: dict[str, Any]) -> int:
    """One process of a training run; what the launcher calls."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stages = [Config.model_validate(config) for config in payload["stages"]]
    try:
        # Before anything that imports megatron-core: a platform may have to come first.
        platforms.get(stages[0].platform).activate()
    except UserError as error:
        return _told(error, EXIT_REFUSED)
    from longvita.training.step import TrainingError
    from longvita.training.trainer import train as train_in_process

    try:
        return train_in_process(stages)
    except TrainingError as error:
        return _told(error, EXIT_FAILED)
    except UserError as error:
        return _told(error, EXIT_REFUSED)


def _told(error: Exception, code: int) -> int:
    """The exit code, once the error is told."""
    if _is_first_to_say(str(error)):
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def _is_first_to_say(text: str) -> bool:
    """Whether no other process of the run has said this; most errors are found by all of them at once."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    store = dist.distributed_c10d._get_default_store()
    return store.add(f"longvita/error/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
