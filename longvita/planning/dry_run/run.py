"""The dry run of a training run: ranks by shape in a separate process, files checked in this one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longvita import platforms
from longvita.config import check_world_size
from longvita.config.errors import ConfigError, Problem
from longvita.config.schema import Config
from longvita.data.mix.missing_files import find_training_problems
from longvita.planning.dry_run import rank_process
from longvita.planning.dry_run.problems import merge_failures, raised_problems
from longvita.planning.dry_run.rank_counts import DryRunOutcome, RankDryRun
from longvita.planning.hardware import Hardware, hardware_of, platform_problems


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run."""

    world_size: int
    ranks: tuple[RankDryRun, ...]
    """The ranks that raised no error."""
    problems: tuple[Problem, ...]
    """Everything that the launch would fail with; the run is ready if there is none."""
    notes: tuple[str, ...]
    """Things that were not checked, and decisions of the run that its config does not show."""
    seconds: float
    """Wall time."""
    peak_bytes: int
    """Highest memory of a process."""
    traces: tuple[str, ...] = field(default=(), repr=False)
    """Tracebacks of the ranks that failed."""


def dry_run(
    config: Config,
    world_size: int,
    ranks: Sequence[int] | None = None,
    with_files: bool = True,
    hardware: Hardware | None = None,
) -> DryRun:
    """Make a dry run of a run of `world_size` processes.

    ranks: those to build by shape; `chosen_ranks` when absent. with_files: whether to check data, tokenizer,
    checkpoints and output folder. hardware: the device, whose platform is asked for problems and whose layers are built
    by shape; the default one of the config's platform when absent.
    What the launch would fail with is returned, not raised. Raises ConfigError for ranks outside of the world.
    """
    from longvita.planning.dry_run import data_check, weight_check  # here: the import of torch takes seconds

    started = time.perf_counter()
    hardware = hardware or hardware_of(config.platform)
    problems = raised_problems(check_world_size, config, world_size)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="longvita-") as name:
        folder = Path(name)
        process = None
        if not problems:
            wanted = chosen_ranks(config, world_size) if ranks is None else list(ranks)
            beyond = ", ".join(str(rank) for rank in wanted if not 0 <= rank < world_size)
            if beyond:
                raise ConfigError(f"--rank: {beyond} not among the ranks 0 to {world_size - 1}")
            process = rank_process.start(config, world_size, wanted, hardware.layer_memory, folder)
        problems += platform_problems(config, hardware)
        if with_files:
            problems += find_training_problems(config) + data_check.find_problems(config)
        outcome = rank_process.finish(process, folder) if process else DryRunOutcome()
    if with_files:
        shapes = {name: shape for rank in outcome.ranks for name, shape in rank.shapes.items()}
        found, notes = weight_check.find_problems(config, shapes)
        problems += found
    problems += merge_failures(outcome.failures)
    if config.training.fp8 is not None:
        notes.append("training.fp8: the dry run computes in bf16; `longvita plan` counts what FP8 keeps")
    return DryRun(
        world_size=world_size,
        ranks=outcome.ranks,
        problems=tuple(problems),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
        peak_bytes=max(outcome.peak_bytes, platforms.get("cpu").memory()["peak"]),
        traces=tuple(failure.trace for failure in outcome.failures),
    )


def chosen_ranks(config: Config, world_size: int) -> list[int]:
    """Choose the first rank, the first of the middle pipeline stage, and the last; without a pipeline first and last.

    In Megatron's order the stage varies slowest.
    """
    stages = config.layout.pipeline_parallel
    middle = [stages // 2 * (world_size // stages)] if stages > 2 else []
    return sorted({0, *middle, world_size - 1})
