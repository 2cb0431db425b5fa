"""`longvita train`: what is refused before any process starts, and the start of the processes."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from typing import Any

from longvita import platforms, processes
from longvita.config import Config, ConfigError, check_world_size, dump
from longvita.config.sizes import replica_size
from longvita.errors import UserError
from longvita.platforms import environment
from longvita.training.launch_check import check
from longvita.training.signals import EXIT_FAILED, EXIT_REFUSED


def train(*stages: Config) -> int:
    """Train the stages that the configs describe, one after the other, in as many processes as the first one asks for.

    The exit code; a stage that does not end well is the last. Under torchrun or srun this process is one of theirs.
    Raises ConfigError for what can be known beforehand.
    """
    first = stages[0]
    world = processes.world_size_of_launcher() or _own_processes(first)
    for number, config in enumerate(stages):
        check(config, [earlier.output for earlier in stages[:number]])
        check_world_size(config, world)
    payload = {"stages": [dump(config) for config in stages]}
    return processes.launch("longvita.commands.train:run", payload, world, environment.defaults(first.platform))


def report_launch(config: Config, count: int | None = None) -> None:
    """Print how `train` would start: `name=value` lines, and exports of a shell with their reasons.

    count: how many processes a launcher will bring; those of the config when absent.
    """
    world = count or _own_processes(config)
    print(f"name={config.name}\nplatform={config.platform}\nprocesses={world}\noutput={config.output}")
    values = processes.with_defaults(environment.defaults(config.platform))
    for variable in environment.variables(config.platform):
        print(f"export {variable.name}={values[variable.name]}  # {variable.why}")


def check_launch(config: Config, count: int | None = None) -> None:
    """Refuse what `train` would in so many processes, and start nothing; of a platform that the config names also what
    its processes would refuse, wherever this runs. Raises ConfigError.
    """
    problems = [] if config.platform == "auto" else platforms.named(config.platform).problems(config)
    for look in (check, functools.partial(check_world_size, world_size=count or _own_processes(config))):
        try:
            look(config)
        except ConfigError as error:
            problems = [*error.problems, *problems]
    if problems:
        raise ConfigError(problems)


def _own_processes(config: Config) -> int:
    """Processes that `train` starts by itself."""
    return config.layout.processes or replica_size(config)


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
