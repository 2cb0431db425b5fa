"""`longvita plan CONFIG --dry-run`: a dry run, its problems with file and line, and the exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from rich.console import Console

from longvita.commands.support import dry_run_tables
from longvita.config.errors import Problem
from longvita.config.loader import Loaded, locate
from longvita.config.sizes import processes_to_start
from longvita.planning.dry_run.plan_comparison import Figures, compare, counted_figures
from longvita.planning.dry_run.rank_counts import RankDryRun
from longvita.planning.dry_run.run import dry_run
from longvita.platforms.layer_memory import LayerMemory
from longvita.processes import EXIT_REFUSED


@dataclasses.dataclass(frozen=True)
class DryRunOptions:
    """How a config is rehearsed."""

    world_size: int | None = None
    """Processes of the run; as many as `longvita train` would start when absent."""
    ranks: Sequence[int] = ()
    """Those to build by shape; first, middle and last stage when empty."""
    with_files: bool = True
    """Whether data, tokenizer, checkpoints and output folder are looked at."""
    as_json: bool = False
    layer_memory: LayerMemory | None = None
    """Those whose layers are rehearsed; the config's platform's when absent."""


def run(
    loaded: Loaded,
    options: DryRunOptions,
    planned: Callable[[Sequence[RankDryRun]], Figures] | None = None,
    refused: Sequence[Problem] = (),
    notes: Sequence[str] = (),
) -> int:
    """Dry-runs, prints, and returns 0, or 2 if the launch would fail at something.

    planned: gives figures of a plan for ranks, to be compared with what is counted on them. refused: what the platform
    of the run refuses of the config. notes: what else is to be told. Raises ConfigError for ranks beyond the world.
    """
    world_size = options.world_size or processes_to_start(loaded.config)
    found = dry_run(loaded.config, world_size, options.ranks or None, options.with_files, refused, options.layer_memory)
    problems = tuple(locate(problem, loaded) for problem in found.problems)
    found = dataclasses.replace(found, problems=problems, notes=(*found.notes, *notes))
    figures = planned(found.ranks) if planned is not None else {}
    comparisons = compare(figures, counted_figures(found.ranks))
    if options.as_json:
        print(json.dumps(dry_run_tables.as_json(found, comparisons)))
    else:
        dry_run_tables.show(found, Console(width=max(Console().width, 130)), comparisons)
    return EXIT_REFUSED if problems else 0
