"""`longvita train`: check the config, start the ranks, train in each."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvita.commands.support.options import ConfigFile, Overrides
from longvita.processes import EXIT_COMPLETE, current_place, launch, with_defaults, world_size_of_launcher

if TYPE_CHECKING:
    from longvita.config.schema import Config


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Check all that can be known before; start nothing.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --check: processes that a launcher will bring.")
    ] = None,
) -> int:
    """Train one stage, or resume it where it stopped."""
    from longvita.commands.support.config_file import load_config, load_config_with_origins
    from longvita.config.loader import with_origins

    if processes is not None and not check:
        raise typer.BadParameter("goes with --check; layout.processes=N starts so many", param_hint="--processes")
    if check:
        # Loaded without the checks of the data, whose files may be on another machine.
        print_launch(load_config(config, overrides), processes)
    loaded = load_config_with_origins(config, overrides, training=True)
    with with_origins(loaded):
        if check:
            check_launch(loaded.config, processes)
            return EXIT_COMPLETE
        return train_stages(loaded.config)


def train_stages(*stages: Config) -> int:
    """Train the stages of the configs one after the other, in as many processes as the first config asks for.

    Returns the exit code; a stage that does not complete is the last. Under torchrun or srun this process is one of the
    ranks. Otherwise the data files of all stages are indexed first, before any rank takes a device. Raises ConfigError
    for what can be known before the start.
    """
    from longvita.config import check_world_size, dump
    from longvita.config.sizes import processes_to_start
    from longvita.data.mix.catalog import index_mixes
    from longvita.platforms import environment
    from longvita.training.launch_check import check

    world = world_size_of_launcher() or processes_to_start(stages[0])
    for number, config in enumerate(stages):
        check(config, [earlier.output for earlier in stages[:number]])
        check_world_size(config, world)
    for config in stages if current_place() is None else ():
        index_mixes(config)
    payload = {"stages": [dump(config) for config in stages]}
    variables = environment.defaults(stages[0].platform)
    return launch("longvita.commands.train:train_rank", payload, world, variables)


def train_rank(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    from longvita import platforms
    from longvita.config.schema import Config

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stages = [Config.model_validate(config) for config in payload["stages"]]
    # Before the trainer imports megatron-core, as a platform may have to be imported first.
    platforms.get(stages[0].platform).activate()
    from longvita.commands.support.accounting_table import sample_accounting_table
    from longvita.training import trainer

    return trainer.train(stages, sample_accounting_table)


def print_launch(config: Config, count: int | None = None) -> None:
    """Print how `train` would start: `name=value` lines, and exports of a shell with their reasons.

    count: processes that a launcher will bring; those of the config when absent.
    """
    from longvita.config.sizes import processes_to_start
    from longvita.platforms import environment

    world = count or processes_to_start(config)
    print(f"name={config.name}\nplatform={config.platform}\nprocesses={world}\noutput={config.output}")
    values = with_defaults(environment.defaults(config.platform))
    for variable in environment.variables(config.platform):
        print(f"export {variable.name}={values[variable.name]}  # {variable.why}")


def check_launch(config: Config, count: int | None = None) -> None:
    """Raise ConfigError for what `train` in `count` processes would refuse; start nothing.

    Of a platform that the config names, also report what its ranks would refuse, on a machine without its devices too.
    """
    from longvita import platforms
    from longvita.config import ConfigError, check_world_size
    from longvita.config.sizes import processes_to_start
    from longvita.training.launch_check import check

    problems = [] if config.platform == "auto" else platforms.named(config.platform).problems(config)
    for refuse in (check, functools.partial(check_world_size, world_size=count or processes_to_start(config))):
        try:
            refuse(config)
        except ConfigError as error:
            problems = [*error.problems, *problems]
    if problems:
        raise ConfigError(problems)
