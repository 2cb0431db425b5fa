"""`longvita train`: what is refused before any process starts, and the start of the processes."""

from __future__ import annotations

import functools
import logging
from typing import Any

from longvita import platforms, processes
from longvita.config import Config, ConfigError, check_world_size, dump
from longvita.config.sizes import processes_to_start
from longvita.platforms import environment
from longvita.training.launch_check import check


def train(*stages: Config) -> int:
    """Train the stages that the configs describe, one after the other, in as many processes as the first one asks for.

    The exit code; a stage that does not end well is the last. Under torchrun or srun this process is one of theirs.
    Raises ConfigError for what can be known beforehand.
    """
    first = stages[0]
    world = processes.world_size_of_launcher() or processes_to_start(first)
    for number, config in enumerate(stages):
        check(config, [earlier.output for earlier in stages[:number]])
        check_world_size(config, world)
    payload = {"stages": [dump(config) for config in stages]}
    return processes.launch("longvita.commands.train:run", payload, world, environment.defaults(first.platform))


def report_launch(config: Config, count: int | None = None) -> None:
    """Print how `train` would start: `name=value` lines, and exports of a shell with their reasons.

    count: how many processes a launcher will bring; those of the config when absent.
    """
    world = count or processes_to_start(config)
    print(f"name={config.name}\nplatform={config.platform}\nprocesses={world}\noutput={config.output}")
    values = processes.with_defaults(environment.defaults(config.platform))
    for variable in environment.variables(config.platform):
        print(f"export {variable.name}={values[variable.name]}  # {variable.why}")


def check_launch(config: Config, count: int | None = None) -> None:
    """Refuse what `train` would in so many processes, and start nothing; of a platform that the config names also what
    its processes would refuse, wherever this runs. Raises ConfigError.
    """
    problems = [] if config.platform == "auto" else platforms.named(config.platform).problems(config)
    for look in (check, functools.partial(check_world_size, world_size=count or processes_to_start(config))):
        try:
            look(config)
        except ConfigError as error:
            problems = [*error.problems, *problems]
    if problems:
        raise ConfigError(problems)


def run(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stages = [Config.model_validate(config) for config in payload["stages"]]
    # Before anything that imports megatron-core: a platform may have to come first.
    platforms.get(stages[0].platform).activate()
    from longvita.training.trainer import train as train_in_process

    return train_in_process(stages)
