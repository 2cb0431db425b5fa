"""Ranks that build a model at a layout: the checks before they start, and how each joins the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from longvita import platforms
from longvita.checkpoint.errors import CheckpointError
from longvita.config import ConfigError, dump
from longvita.config.checks import find_problems
from longvita.config.schema import Config
from longvita.config.sizes import replica_size
from longvita.platforms import environment
from longvita.platforms.base import Platform
from longvita.processes import init_distributed, launch, world_size_of_launcher

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups


@contextlib.contextmanager
def joined_replica(payload: dict[str, Any]) -> Iterator[tuple[Config, ParallelGroups, Platform]]:
    """Join the ranks of one replica; yield its config, its groups and the platform for the block."""
    config = Config.model_validate(payload["config"])
    platform = platforms.get(config.platform)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    groups = platform.build_groups(config)
    yield config, groups, platform
    groups.destroy()


def launch_replica(target: str, payload: dict[str, Any], config: Config) -> int:
    """Run `target` ("module:function") in the ranks of one replica, with `payload` and the config; the exit code.

    Raises ConfigError unless model, layout and platform fit each other (data and training are not checked), and
    CheckpointError if a launcher has started another number of processes.
    """
    relevant = ("model.", "layout.", "platform")
    problems = [*platforms.name_problems(config), *find_problems(config)]
    problems = [problem for problem in problems if problem.field.startswith(relevant)]
    if problems:
        raise ConfigError(problems)
    size, started = replica_size(config), world_size_of_launcher()
    if started is not None and started != size:
        raise CheckpointError(f"the layout is {size} processes and the launcher started {started}; start {size}")
    return launch(target, payload | {"config": dump(config)}, size, environment.defaults(config.platform))
