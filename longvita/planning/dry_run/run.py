"""The dry run of a run: ranks by shape in a process of their own, files looked at in this one."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longvita.config import check_world_size, names
from longvita.config.errors import ABSENT, ConfigError, Problem
from longvita.config.schema import Config
from longvita.data.mix.missing_files import find_training_problems
from longvita.planning.dry_run.rank_counts import RankDryRun
from longvita.planning.hardware import hardware_of
from longvita.platforms.layer_memory import LayerMemory

PROCESS = "longvita.planning.dry_run.rank_process"
_FIELD = re.compile(r"\b[a-z_]+(?:\.\w+)+\b")


@dataclass(frozen=True)
class Failure:
    """A rank that could not be rehearsed."""

    rank: int
    text: str
    """What was raised."""
    trace: str
    """Where."""


@dataclass(frozen=True)
class Outcome:
    """What the process of the ranks hands back."""

    ranks: tuple[RankDryRun, ...]
    failures: tuple[Failure, ...]
    peak_bytes: int
    """Most memory that the process took."""


@dataclass(frozen=True)
class DryRun:
    """What a dry run found."""

    world_size: int
    ranks: tuple[RankDryRun, ...]
    """Those that could be rehearsed."""
    problems: tuple[Problem, ...]
    """What the launch would fail at; the run is ready where there are none."""
    notes: tuple[str, ...]
    """What was not looked at, and what the run will do that its config does not say."""
    seconds: float
    """Of wall time."""
    peak_bytes: int
    """Most memory that a process took."""
    traces: tuple[str, ...] = field(default=(), repr=False)
    """Where ranks failed."""


def chosen_ranks(config: Config, world_size: int) -> list[int]:
    """The first rank, the first of the middle pipeline stage, and the very last; of one stage, the first and the last.

    Megatron's order has the stage vary slowest.
    """
    stages = config.layout.pipeline_parallel
    middle = [stages // 2 * (world_size // stages)] if stages > 2 else []
    return sorted({0, *middle, world_size - 1})


def dry_run(
    config: Config,
    world_size: int,
    ranks: Sequence[int] | None = None,
    with_files: bool = True,
    refused: Sequence[Problem] = (),
    layer_memory: LayerMemory | None = None,
) -> DryRun:
    """Dry-run a run of `world_size` processes.

    ranks: those to build by shape; `chosen_ranks` when absent. with_files: whether data, tokenizer, checkpoints and the
    output folder are looked at. refused: problems of the config that the platform of the run finds, which the ranks
    here, on another one, do not. layer_memory: those whose layers are rehearsed; the config's platform's when absent.
    What the launch would fail at is returned, not raised. Patches act on whole processes, so the ranks have one of
    their own.
    """
    from longvita.planning.dry_run import data_check, weight_check

    started = time.perf_counter()
    problems = _world_size_problems(config, world_size)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="longvita-") as folder:
        process = None if problems else _start(config, world_size, ranks, layer_memory, Path(folder))
        problems += refused
        if with_files:
            problems += find_training_problems(config) + data_check.find_problems(config)
        outcome = _outcome(process, Path(folder)) if process else Outcome((), (), 0)
    if with_files:
        shapes = {name: shape for rank in outcome.ranks for name, shape in rank.shapes.items()}
        found, notes = weight_check.look(config, shapes)
        problems += found
    problems += _merged(outcome.failures)
    if config.training.fp8 is not None:
        notes.append("training.fp8: the dry run computes in bf16; `longvita plan` counts what FP8 keeps")
    return DryRun(
        world_size=world_size,
        ranks=outcome.ranks,
        problems=tuple(problems),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
        peak_bytes=max(outcome.peak_bytes, _own_peak()),
        traces=tuple(failure.trace for failure in outcome.failures),
    )


def _world_size_problems(config: Config, world_size: int) -> list[Problem]:
    try:
        check_world_size(config, world_size)
    except ConfigError as error:
        return error.problems
    return []


def _start(
    config: Config, world_size: int, ranks: Sequence[int] | None, layer_memory: LayerMemory | None, folder: Path
) -> subprocess.Popen:
    wanted = list(ranks) if ranks is not None else chosen_ranks(config, world_size)
    beyond = [rank for rank in wanted if not 0 <= rank < world_size]
    if beyond:
        raise ConfigError(f"--rank: {', '.join(map(str, beyond))} not among the ranks 0 to {world_size - 1}")
    call = folder / "call.pickle"
    layer_memory = layer_memory or hardware_of(config.platform).layer_memory
    call.write_bytes(pickle.dumps((sys.path, config.model_dump(mode="python"), world_size, wanted, layer_memory)))
    command = [sys.executable, "-m", PROCESS, str(call), str(folder / "outcome.pickle")]
    with open(folder / "errors.txt", "wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)


def _outcome(process: subprocess.Popen, folder: Path) -> Outcome:
    code = process.wait()
    result = folder / "outcome.pickle"
    if code == 0 and result.is_file():
        return pickle.loads(result.read_bytes())
    told = (folder / "errors.txt").read_text(errors="replace")
    last = told.strip().splitlines()[-1:] or ["it said nothing"]
    text = f"the process of the ranks ended with code {code}: {last[0]}"
    return Outcome((), (Failure(-1, text, told),), 0)


def _merged(failures: Sequence[Failure]) -> list[Problem]:
    """One problem for what several ranks fail at alike, with the field of the config that its text names, if any."""
    ranks: dict[str, list[int]] = {}
    for failure in failures:
        ranks.setdefault(failure.text, []).append(failure.rank)
    problems = []
    for text, those in ranks.items():
        who = f"rank{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: " if min(those) >= 0 else ""
        problems.append(Problem(f"{who}{text}", field_named_in(text), ABSENT))
    return problems


def field_named_in(text: str) -> str:
    """The first dotted name in a text that is a field of the config, or an entry of one such as training.megatron; ""
    where there is none.
    """
    for match in _FIELD.finditer(text):
        steps = tuple(match[0].split("."))
        around = names.field_at(steps[:-1])
        if names.field_at(steps) is not None or (around is not None and names.is_mapping(around.annotation)):
            return match[0]
    return ""


def _own_peak() -> int:
    from longvita.platforms import get

    return get("cpu").memory()["peak"]
