"""Processes that build a model of a folder: what is refused before they start, and what each does around its work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from longvita import platforms
from longvita.checkpoint.errors import CheckpointError
from longvita.config.checks import find_problems
from longvita.config.errors import ConfigError
from longvita.config.schema import Config
from longvita.config.sizes import replica_size
from longvita.platforms import environment
from longvita.platforms.base import Platform
from longvita.processes import init_distributed, launch, world_size_of_launcher

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups


@contextlib.contextmanager
def joined_replica(config: Config) -> Iterator[tuple[ParallelGroups, Platform]]:
    """Join the ranks of a replica of the config's layout: their groups and their platform, for the block."""
    platform = platforms.get(config.platform)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    groups = platform.build_groups(config)
    yield groups, platform
    groups.destroy()


def one_replica(config: Config) -> int:
    """One replica of the layout, which a launcher's processes must be too."""
    needed, given = replica_size(config), world_size_of_launcher()
    if given is not None and given != needed:
        raise CheckpointError(f"the layout is {needed} processes and the launcher started {given}; start {needed}")
    return needed


def check_sizes(config: Config) -> None:
    """Sizes of model and layout must fit each other; data and training play no part here."""
    relevant = ("model.", "layout.", "platform")
    problems = [*platforms.name_problems(config), *find_problems(config)]
    problems = [problem for problem in problems if problem.field.startswith(relevant)]
    if problems:
        raise ConfigError(problems)


def launch_replica(function: str, payload: dict[str, Any], config: Config) -> int:
    """Call `function` ("module:name") in the processes of the config's layout."""
    variables = environment.defaults(config.platform)
    return launch(function, payload, one_replica(config), variables)
