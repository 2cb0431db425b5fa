"""What a mix holds and how it is packed, in numbers: over the columns of its catalog, never sample by sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.config.schema import Config
from longvita.data.errors import DataError
from longvita.data.mix.catalog import Catalog, CatalogFile
from longvita.data.packing.balance import WorkModel, divide
from longvita.data.packing.packer import WINDOW_SEQUENCES, PackingPlan
from longvita.data.quarantine import count_reasons

FILL_STEPS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Bounds of the classes of fill."""
FIRST_SEQUENCES = 16
"""Sequences whose documents are kept to be drawn."""
MAX_STEPS = 200
"""Steps whose division among replicas is looked at, evenly chosen among those of an epoch."""

Histogram = list[tuple[str, int]]
"""Names of classes and how many there are of each."""


@dataclass(frozen=True)
class SourceFigures:
    """One source of a mix."""

    source: str
    samples: int
    """All that its files hold."""
    taken: int
    """Of the mix, those that a ratio repeats each time."""
    tokens: int
    """Of what is taken."""
    tiles: int
    """Pictures' tiles and frames, of what is taken."""
    resampled: int
    """Taken with fewer frames than data.max_num_frames allows, to fit a sequence."""
    quarantined: dict[str, int]
    """Samples that cannot be used, by reason word."""
    lengths: Histogram
    """Tokens of what is taken."""


def source_figures(catalog: Catalog) -> list[SourceFigures]:
    """Of each source, in the order of the config."""
    sources = dict.fromkeys(file.source for file in catalog.files)
    return [
        _source_figures(source, [file for file in catalog.files if file.source == source], catalog)
        for source in sources
    ]


def _source_figures(source: str, files: Sequence[CatalogFile], catalog: Catalog) -> SourceFigures:
    limit = catalog.settings.max_num_frames
    lengths = np.concatenate([file.measured.lengths[file.taken] for file in files])
    return SourceFigures(
        source,
        samples=sum(file.num_samples for file in files),
        taken=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        tiles=sum(int(file.measured.tiles[file.taken].sum(dtype=np.int64)) for file in files),
        resampled=sum(int((file.measured.frame_limits[file.taken] < limit).sum()) for file in files),
        quarantined=count_reasons(entry for file in files for entry in file.quarantined),
        lengths=length_classes(lengths),
    )


def length_classes(lengths: np.ndarray) -> Histogram:
    """Numbers of lengths [n] between powers of two."""
    if not len(lengths):
        return []
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers)
    return [(f"up to {2**power:,}", int(counts[power])) for power in range(powers.min(), len(counts))]


@dataclass(frozen=True)
class PackingFigures:
    """The packed sequences of an epoch."""

    sequences: int
    sequence_length: int
    """Tokens."""
    fill: float
    """Share of the positions that hold a token, 0 to 1."""
    fills: Histogram
    """How many sequences are how full."""
    first: list[np.ndarray]
    """[k] tokens each: the documents of the first sequences."""


def packing_figures(catalog: Catalog, plan: PackingPlan, sequence_length: int) -> PackingFigures:
    """Of an epoch's plan."""
    samples, bounds = plan.flat()
    lengths = catalog.lengths[samples]
    tokens = np.add.reduceat(lengths.astype(np.int64), bounds[:-1])
    edges = (0.0, *FILL_STEPS, np.inf)
    names = [f"below {FILL_STEPS[0]:.0%}", *(f"from {step:.0%}" for step in FILL_STEPS)]
    counts = np.histogram(tokens / sequence_length, edges)[0].tolist()
    drawn = itertools.pairwise(bounds[: FIRST_SEQUENCES + 1].tolist())
    return PackingFigures(
        sequences=plan.num_sequences,
        sequence_length=sequence_length,
        fill=plan.fill,
        fills=list(zip(names, counts)),
        first=[lengths[start:end] for start, end in drawn],
    )


def pack(plan: PackingPlan, show: Callable[[int], None]) -> None:
    """Has all windows of a plan packed, and shows how many sequences are."""
    number = 0
    while plan.sequence(number) is not None:
        number += WINDOW_SEQUENCES // 2
        show(number)


@dataclass(frozen=True)
class Imbalance:
    """How much more work the busiest replica of a step has than the mean: the others wait for it that long."""

    replicas: int
    steps: int
    """Steps that were looked at."""
    mean: float
    """Of these steps, share of the mean work."""
    worst: float
    """Of one of them."""
    in_order: float
    """Mean, if the replicas took the sequences in their order."""
    classes: Histogram
    """How many steps are how uneven."""


def steps_of(plan: PackingPlan, config: Config) -> int:
    """How many steps `imbalance` looks at."""
    return min(max(plan.num_sequences // config.training.global_batch_size, 1), MAX_STEPS)


def imbalance(
    catalog: Catalog, plan: PackingPlan, config: Config, replicas: int, show: Callable[[int], None]
) -> Imbalance:
    """Of steps of the first epoch, divided as training does; `show` is called with the steps done.

    Raises DataError if a step cannot be divided among so many replicas.
    """
    size = config.training.global_batch_size
    if size % replicas:
        raise DataError(
            f"training.global_batch_size {size} cannot be divided among {replicas} replicas; take another --replicas"
        )
    work = _work_of_steps(catalog, plan, config)
    found = np.zeros((len(work), 2))
    for number, step in enumerate(work):
        owners = divide(step, replicas)
        loads = np.stack([np.bincount(owners, step, replicas), step.reshape(-1, replicas).sum(0)])
        found[number] = loads.max(1) / loads.mean(1) - 1
        show(number + 1)
    edges = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, np.inf)
    names = [f"below {edge:.1%}" for edge in edges[1:-1]] + [f"from {edges[-2]:.0%}"]
    counts = np.histogram(found[:, 0], edges)[0].tolist()
    mean, in_order = found.mean(0).tolist()
    return Imbalance(replicas, len(work), mean, float(found[:, 0].max()), in_order, list(zip(names, counts)))


def _work_of_steps(catalog: Catalog, plan: PackingPlan, config: Config) -> np.ndarray:
    """[steps, global_batch_size] float64: work of each sequence. An epoch below one step is gone through again."""
    samples, bounds = plan.flat()
    size, count = config.training.global_batch_size, steps_of(plan, config)
    last = max(plan.num_sequences // size, 1)
    first = np.unique(np.linspace(0, last - 1, count).astype(np.int64)) * size
    numbers = (first[:, None] + np.arange(size)).ravel() % plan.num_sequences
    sizes = bounds[numbers + 1] - bounds[numbers]
    starts = np.cumsum(sizes) - sizes
    documents = samples[np.repeat(bounds[numbers] - starts, sizes) + np.arange(sizes.sum())]
    lengths, tiles = catalog.lengths[documents], catalog.tiles[documents]
    work = WorkModel.of(config).of_sequences(lengths, tiles, starts, config.data.isolate_documents)
    return work.reshape(-1, size)


def imbalance_text(found: Imbalance) -> str:
    """A sentence on how even the work of the replicas is."""
    return (
        f"over {found.replicas} replicas the busiest one of a step has {found.mean:.2%} more work than the mean "
        f"({found.worst:.2%} in the worst of {found.steps} steps; {found.in_order:.2%} if they took them in order)"
    )
