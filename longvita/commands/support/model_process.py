"""Processes that build a model of a folder: what is refused before they start, and what each does around its work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from longvita import platforms
from longvita.checkpoint.errors import CheckpointError, SharedCheckpointError
from longvita.config.checks import find_problems
from longvita.config.errors import ConfigError
from longvita.config.schema import Config
from longvita.config.sizes import replica_size
from longvita.errors import UserError
from longvita.platforms import environment
from longvita.processes import launch, world_size_of_launcher

USER_ERROR_CODE = 2


def in_world(payload: dict[str, Any], work: Callable[..., int]) -> int:
    """Joins the world and runs `work(payload, config, groups, platform)`; a user's error is told once, with code 2."""
    config = Config.model_validate(payload["config"])
    platform = platforms.get(config.platform)
    platform.activate()

    # After the patches: these import megatron-core, which looks at the device as it is then.
    import torch.distributed as dist

    from longvita.parallel.groups import initialize
    from longvita.processes import init_distributed

    init_distributed(platform.backend, platform.set_device)
    try:
        groups = initialize(config, platform)
        code = work(payload, config, groups, platform)
        groups.destroy()
        return code
    except UserError as error:
        if dist.get_rank() == 0 or not isinstance(error, SharedCheckpointError):
            print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_CODE
    finally:
        dist.destroy_process_group()


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
