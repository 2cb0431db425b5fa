"""`longvita plan`: memory and time of a run before it is launched, and the layouts that fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from longvita.commands.support import dry_run as dry_run_command
from longvita.config import ConfigError
from longvita.config.loader import Loaded, locate
from longvita.config.schema import Config
from longvita.config.sizes import processes_to_start
from longvita.planning import platform_refusals
from longvita.planning.batch_contents import Contents, worst_contents
from longvita.planning.dry_run.plan_comparison import Figures
from longvita.planning.dry_run.rank_counts import RankDryRun
from longvita.planning.hardware import Hardware, PlanError, find_hardware, hardware_of
from longvita.planning.memory import plan_generation, plan_memory, stage_memories
from longvita.planning.plan import RunPlan, as_data, describe, gib, show, verdict
from longvita.planning.plan_page import write_plan
from longvita.planning.search import nearest, search
from longvita.planning.throughput import step_time

BEST = 10
"""Layouts that --search shows."""
EXIT_DOES_NOT_FIT = 1


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is asked for."""

    devices: int | None = None
    """Processes; layout.processes or one replica when absent."""
    memory: str | None = None
    """Of one device, such as 96GiB; the hardware's own when absent."""
    host_memory: str | None = None
    """Of a node, for what its devices put away, such as 2TiB; the hardware's own when absent."""
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
    """Documents of one sequence, equally long."""


def plan(loaded: Loaded, options: PlanOptions) -> int:
    """Prints or writes the plan; 0 where it fits (with --search, where any layout does), else 1.

    Raises PlanError for hardware, memory, contents or a page that make no sense, ConfigError for a config that does not
    go on so many devices, or that the platform refuses.
    """
    hardware = _hardware(loaded.config, options)
    if options.search:
        _refuse_answering(loaded.config, "--search")
    if options.page is not None and options.page.is_dir():
        raise PlanError(f"--html {options.page} is a folder; name a file in it")
    if options.page is not None and not options.page.absolute().parent.is_dir():
        raise PlanError(f"--html {options.page}: there is no folder {options.page.parent}; make it, or write elsewhere")
    found = make_plan(loaded, hardware, options)
    if options.as_json:
        print(json.dumps(as_data(found)))
    else:
        show(found, Console(width=max(Console().width, 150)))
    if options.page is not None:
        write_plan(options.page, found)
        if not options.as_json:
            print(f"wrote {options.page}")
    return 0 if found.fits or (options.search and found.candidates) else EXIT_DOES_NOT_FIT


def dry_run(loaded: Loaded, options: PlanOptions, ranks: Sequence[int], with_files: bool) -> int:
    """Prints a dry run beside the plan's figures; 0, 2 if the launch would fail at something, or 1 if it would not,
    but takes more memory by plan than there is.

    ranks: those to build by shape, the usual ones when empty. Raises PlanError, and ConfigError for ranks beyond the
    world.
    """
    _refuse_answering(loaded.config, "--dry-run")
    config, hardware = loaded.config, _hardware(loaded.config, options)
    world_size = options.devices or processes_to_start(config)

    def planned(built: Sequence[RankDryRun]) -> Figures:
        return {rank.rank: planned_figures(config, world_size, hardware, rank) for rank in built}

    asked = dry_run_command.DryRunOptions(world_size, ranks, with_files, options.as_json, hardware.layer_memory)
    made = _memory_plan(config, world_size, hardware)
    notes = [f"by plan, on {hardware.name} of {gib(hardware.memory)}: {verdict(made)}"] if made else []
    code = dry_run_command.run(loaded, asked, planned, platform_refusals.find_problems(config, hardware), notes)
    return EXIT_DOES_NOT_FIT if code == 0 and made is not None and not made.fits else code


def _memory_plan(config: Config, world_size: int, hardware: Hardware) -> RunPlan | None:
    """Memory of the stages; None where the processes do not go with the layout, which a dry run tells by itself."""
    try:
        stages = plan_memory(config, world_size, hardware)
    except ConfigError:
        return None
    return RunPlan(config.name, world_size, hardware, describe(config), stages, None, [])


def _refuse_answering(config: Config, option: str) -> None:
    if not config.data.dataset:
        raise PlanError(f"{option} is for a run that trains; {config.name} has no data (data.dataset=MIX)")


def planned_figures(config: Config, world_size: int, hardware: Hardware, rank: RankDryRun) -> dict[str, int]:
    """What the plan says of a rehearsed rank, by the names of longvita.planning.dry_run.plan_comparison."""
    figures: dict[str, int] = {}
    # It is rehearsed in bf16.
    config = config.model_copy(update={"training": config.training.model_copy(update={"fp8": None})})
    for load in (each.load for each in rank.activations):
        contents = Contents(load.tokens, load.documents, load.tiles, load.loss_tokens, load.name)
        stage = next(stage_memories(config, world_size, hardware, [contents], [rank.stage]))
        figures[f"activations of {load.name}"] = stage.activations
        figures |= {"parameters": stage.parameter_count, "parameter_bytes": stage.parameters}
        figures |= {"gradient_bytes": stage.gradients, "optimizer_bytes": stage.optimizer}
    return figures


def _hardware(config: Config, options: PlanOptions) -> Hardware:
    return find_hardware(options.hardware or hardware_of(config.platform).name, options.memory, options.host_memory)


def make_plan(loaded: Loaded, hardware: Hardware, options: PlanOptions) -> RunPlan:
    """The plan of a config that trains; of one without training data, as it answers. Raises ConfigError."""
    config = loaded.config
    world_size = options.devices or processes_to_start(config)
    if not config.data.dataset:
        return RunPlan(config.name, world_size, hardware, describe(config), plan_generation(config, hardware), None, [])
    contents = _contents(config, options)
    problem = ""
    try:
        problems = platform_refusals.find_problems(config, hardware)
        if problems:
            raise ConfigError(problems)
        stages = plan_memory(config, world_size, hardware, contents)
        time = step_time(config, world_size, hardware, stages, contents[0])
    except ConfigError as error:
        told = ConfigError([locate(problem, loaded) for problem in error.problems])
        if not options.search:
            raise told from None
        stages, time, problem = [], None, str(told)
    made = RunPlan(config.name, world_size, hardware, describe(config), stages, time, [], problem)
    if not options.search and made.fits:
        return made
    every = search(config, world_size, hardware)
    shown, order = every[:BEST], "the fastest, and what the others lose against the first"
    if not options.search:
        shown, order = nearest(config, every), "those of the least change, and of these the fastest"
    return dataclasses.replace(made, candidates=shown, fitting=len(every), order=order)


def _contents(config: Config, options: PlanOptions) -> list[Contents]:
    """What the options say a micro batch holds; without them, the two worst."""
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
    return [Contents(text.tokens, sequences * options.documents, tiles, loss, "as given")]
