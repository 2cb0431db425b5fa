"""`longvita plan`: memory and time of a run before it is launched, the layouts that fit, and its dry run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from longvita.commands.support import dry_run_tables, plan_tables
from longvita.config import ConfigError
from longvita.config.loader import Loaded, locate
from longvita.config.schema import Config
from longvita.config.sizes import processes_to_start
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.planning.dry_run.plan_comparison import compare_with_plan
from longvita.planning.dry_run.run import dry_run as make_dry_run
from longvita.planning.hardware import Hardware, PlanError, find_hardware, hardware_of
from longvita.planning.memory import plan_memory
from longvita.planning.plan import RunPlan, as_data, make_generation_plan, make_plan
from longvita.planning.plan_page import write_plan
from longvita.planning.plan_text import gib, verdict
from longvita.processes import EXIT_REFUSED

EXIT_DOES_NOT_FIT = 1


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan."""

    devices: int | None = None
    """Processes; those that `longvita train` would start when absent."""
    memory: str | None = None
    """Memory of a device, such as 96GiB; the hardware's own when absent."""
    host_memory: str | None = None
    """Memory of a node for offloaded tensors of its devices, such as 2TiB; the hardware's own when absent."""
    hardware: str | None = None
    """A name of longvita.planning.hardware."""
    search: bool = False
    as_json: bool = False
    page: Path | None = None
    tiles: int | None = None
    """Tiles and frames of one sequence; as many as fit when absent."""
    loss_tokens: int | None = None
    """Positions with loss of one sequence."""
    documents: int = 1
    """Documents of one sequence, of equal length."""


def plan(loaded: Loaded, options: PlanOptions) -> int:
    """Print or write the plan; return 0 if it fits (with --search, if any layout does), else 1.

    Raises PlanError for invalid hardware, memory, contents or page, ConfigError for a config that cannot run on so many
    devices or that the platform refuses.
    """
    config, hardware, world_size = loaded.config, _hardware(loaded.config, options), _world_size(loaded.config, options)
    if options.search:
        _refuse_generation(config, "--search")
    if options.page is not None and options.page.is_dir():
        raise PlanError(f"--html {options.page} is a folder; name a file in it")
    if options.page is not None and not options.page.absolute().parent.is_dir():
        raise PlanError(f"--html {options.page}: there is no folder {options.page.parent}; make it, or write elsewhere")
    try:
        if config.data.dataset:
            found = make_plan(config, world_size, hardware, _contents(config, options), options.search)
        else:
            found = make_generation_plan(config, world_size, hardware)
    except ConfigError as error:
        raise _located(error, loaded) from None
    if found.refusal is not None:
        found = dataclasses.replace(found, refusal=_located(found.refusal, loaded))
    if options.as_json:
        print(json.dumps(as_data(found)))
    else:
        plan_tables.show(found, Console(width=max(Console().width, 150)))
    if options.page is not None:
        write_plan(options.page, found)
        if not options.as_json:
            print(f"wrote {options.page}")
    return 0 if found.fits or (options.search and found.candidates) else EXIT_DOES_NOT_FIT


def dry_run(loaded: Loaded, options: PlanOptions, ranks: Sequence[int], with_files: bool) -> int:
    """Print a dry run next to the plan's figures; return 2 if the launch would fail, 1 if it only lacks memory, else 0.

    ranks: those to build by shape; chosen_ranks when empty. Raises PlanError for invalid hardware or memory,
    ConfigError for ranks outside of the world.
    """
    _refuse_generation(loaded.config, "--dry-run")
    config, hardware, world_size = loaded.config, _hardware(loaded.config, options), _world_size(loaded.config, options)
    found = make_dry_run(config, world_size, ranks or None, with_files, hardware)
    memory = _memory_plan(config, world_size, hardware)
    note = [f"by plan, on {hardware.name} of {gib(hardware.memory)}: {verdict(memory)}"] if memory else []
    problems = tuple(locate(problem, loaded) for problem in found.problems)
    found = dataclasses.replace(found, problems=problems, notes=(*found.notes, *note))
    comparisons = compare_with_plan(config, world_size, hardware, found.ranks)
    if options.as_json:
        print(json.dumps(dry_run_tables.as_json(found, comparisons)))
    else:
        dry_run_tables.show(found, Console(width=max(Console().width, 130)), comparisons)
    if problems:
        return EXIT_REFUSED
    return EXIT_DOES_NOT_FIT if memory is not None and not memory.fits else 0


def _memory_plan(config: Config, world_size: int, hardware: Hardware) -> RunPlan | None:
    """Plan the memory only; None where the layout does not fit the processes, which the dry run reports itself."""
    try:
        return RunPlan(config, world_size, hardware, plan_memory(config, world_size, hardware))
    except ConfigError:
        return None


def _refuse_generation(config: Config, option: str) -> None:
    if not config.data.dataset:
        raise PlanError(f"{option} is for a run that trains; {config.name} has no data (data.dataset=MIX)")


def _hardware(config: Config, options: PlanOptions) -> Hardware:
    return find_hardware(options.hardware or hardware_of(config.platform).name, options.memory, options.host_memory)


def _world_size(config: Config, options: PlanOptions) -> int:
    return options.devices or processes_to_start(config)


def _located(error: ConfigError, loaded: Loaded) -> ConfigError:
    """Add file and line to each problem of an error."""
    return ConfigError([locate(problem, loaded) for problem in error.problems])


def _contents(config: Config, options: PlanOptions) -> list[BatchContents]:
    """Return the contents of a micro batch by the options; the two worst without options."""
    if options.tiles is None and options.loss_tokens is None and options.documents == 1:
        return worst_contents(config)
    sequences, tokens = config.training.micro_batch_size, config.data.sequence_length
    video, text = worst_contents(config)
    tiles = video.tiles if options.tiles is None else sequences * options.tiles
    if tiles > video.tiles:
        raise PlanError(f"--tiles {options.tiles}: at most {video.tiles // sequences} fit {tokens} tokens")
    loss = sequences * (tokens if options.loss_tokens is None else options.loss_tokens)
    if loss > text.tokens:
        raise PlanError(f"--loss-tokens {options.loss_tokens}: a sequence has {tokens} tokens")
    if tokens % options.documents:
        raise PlanError(f"--documents {options.documents} does not divide the {tokens} tokens of a sequence")
    return [BatchContents(text.tokens, sequences * options.documents, tiles, loss, "as given")]
