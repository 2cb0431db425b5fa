"""`longvita plan`: memory and time of a run before it is launched, the layouts that fit, and its dry run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.commands.support.options import ConfigFile, JSONOption, Overrides, PlanOptions
from longvita.processes import EXIT_COMPLETE, EXIT_REFUSED

if TYPE_CHECKING:
    from longvita.config.loader import Loaded
    from longvita.config.schema import Config

EXIT_DOES_NOT_FIT = 1


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    *,
    options: PlanOptions,
    search: Annotated[bool, typer.Option("--search", help="Try the layouts and show the ten best.")] = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write this page with the memory picture.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build some ranks by shape, and check every file.")
    ] = False,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank to build; may be repeated. Three of them when absent."),
    ] = None,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Skip data, tokenizer, checkpoints and output folder.")
    ] = False,
    as_json: JSONOption = False,
) -> int:
    """Plan memory and time of a run, and find layouts that fit; exit code 1 if it does not fit (with --search, if no
    layout does).

    With --dry-run, build some of its ranks at full size by shape, without launching it; exit code 2 if the launch would
    fail.
    """
    from longvita.commands.support.config_file import load_config_with_origins

    if not dry_run and (rank or no_files):
        raise typer.BadParameter("need --dry-run", param_hint="--rank, --no-files")
    if dry_run and (search or page is not None or options.names_contents):
        given = "--search, --html, --tiles, --loss-tokens, --documents"
        raise typer.BadParameter("do not work with --dry-run", param_hint=given)
    loaded = load_config_with_origins(config, overrides)
    if dry_run:
        return print_dry_run(loaded, options, rank or (), not no_files, as_json)
    return print_plan(loaded, options, search, page, as_json)


def print_plan(loaded: Loaded, options: PlanOptions, search: bool, page: Path | None, as_json: bool) -> int:
    """Print or write the plan; return 0 if it fits (with --search, if any layout does), else 1.

    Raises PlanError for invalid hardware, memory, contents or page, ConfigError for a config that cannot run on so many
    devices or that the platform refuses.
    """
    from rich.console import Console

    from longvita.commands.support import plan_options, plan_tables
    from longvita.config.loader import located, with_origins
    from longvita.planning.hardware import PlanError
    from longvita.planning.plan import as_data, make_generation_plan, make_plan
    from longvita.planning.plan_page import write_plan

    config = loaded.config
    hardware, world_size = plan_options.device(options, config), plan_options.world_size(options, config)
    if search:
        _refuse_generation(config, "--search")
    if page is not None and page.is_dir():
        raise PlanError(f"--html {page} is a folder; name a file in it")
    if page is not None and not page.absolute().parent.is_dir():
        raise PlanError(f"--html {page}: there is no folder {page.parent}; make it, or write elsewhere")
    with with_origins(loaded):
        if config.data.dataset:
            found = make_plan(config, world_size, hardware, plan_options.contents(options, config), search)
        else:
            found = make_generation_plan(config, world_size, hardware)
    if found.refusal is not None:
        found = dataclasses.replace(found, refusal=located(found.refusal, loaded))
    if as_json:
        print(json.dumps(as_data(found)))
    else:
        plan_tables.show(found, Console(width=max(Console().width, 150)))
    if page is not None:
        write_plan(page, found)
        if not as_json:
            print(f"wrote {page}")
    return EXIT_COMPLETE if found.fits or (search and found.candidates) else EXIT_DOES_NOT_FIT


def print_dry_run(
    loaded: Loaded, options: PlanOptions, ranks: Sequence[int], with_files: bool, as_json: bool = False
) -> int:
    """Print a dry run next to the plan's figures; return 2 if the launch would fail, 1 if it only lacks memory, else 0.

    ranks: those to build by shape; chosen_ranks when empty. Raises PlanError for invalid hardware or memory,
    ConfigError for ranks outside of the world.
    """
    from rich.console import Console

    from longvita.commands.support import dry_run_tables, plan_options
    from longvita.config import ConfigError
    from longvita.config.loader import locate
    from longvita.planning.dry_run.plan_comparison import compare_with_plan
    from longvita.planning.dry_run.run import dry_run
    from longvita.planning.memory import plan_memory
    from longvita.planning.plan import RunPlan
    from longvita.planning.plan_text import gib, verdict

    _refuse_generation(loaded.config, "--dry-run")
    config = loaded.config
    hardware, world_size = plan_options.device(options, config), plan_options.world_size(options, config)
    found = dry_run(config, world_size, ranks or None, with_files, hardware)
    memory = None
    with contextlib.suppress(ConfigError):  # a layout that does not fit the processes, which the dry run reports itself
        memory = RunPlan(config, world_size, hardware, plan_memory(config, world_size, hardware))
    note = [f"by plan, on {hardware.name} of {gib(hardware.memory)}: {verdict(memory)}"] if memory else []
    problems = tuple(locate(problem, loaded) for problem in found.problems)
    found = dataclasses.replace(found, problems=problems, notes=(*found.notes, *note))
    comparisons = compare_with_plan(config, world_size, hardware, found.ranks)
    if as_json:
        print(json.dumps(dry_run_tables.as_json(found, comparisons)))
    else:
        dry_run_tables.show(found, Console(width=max(Console().width, 130)), comparisons)
    if problems:
        return EXIT_REFUSED
    return EXIT_DOES_NOT_FIT if memory is not None and not memory.fits else EXIT_COMPLETE


def _refuse_generation(config: Config, option: str) -> None:
    from longvita.planning.hardware import PlanError

    if not config.data.dataset:
        raise PlanError(f"{option} is for a run that trains; {config.name} has no data (data.dataset=MIX)")
