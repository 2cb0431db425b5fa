"""Figures of a mix and its packing, from the columns of its catalog, never sample by sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.config.schema import Config
from longvita.data.errors import DataError
from longvita.data.mix.catalog import Catalog, CatalogFile, by_source, unusable_reasons
from longvita.data.packing.balance import WorkModel, divide
from longvita.data.packing.packer import WINDOW_SEQUENCES, PackingPlan

FILL_STEPS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Bounds of the fill classes."""
FIRST_SEQUENCES = 16
"""Sequences whose documents are drawn."""
MAX_STEPS = 200
"""Steps, evenly spaced over an epoch, whose division among replicas is measured."""

Histogram = list[tuple[str, int]]
"""Name and count of each class."""


@dataclass(frozen=True)
class SourceFigures:
    """One source of a mix."""

    source: str
    samples: int
    """All samples of its files."""
    used: int
    """Samples that the mix uses; one that a ratio repeats counts each time."""
    tokens: int
    """Tokens of the used samples."""
    tiles: int
    """Tiles of pictures and frames of the used samples."""
    resampled: int
    """Used samples with fewer frames than data.max_num_frames allows, to fit a sequence."""
    quarantined: dict[str, int]
    """Samples that cannot be used, by reason word."""
    lengths: Histogram
    """Used samples by their number of tokens."""


def source_figures(catalog: Catalog) -> list[SourceFigures]:
    """Figures of each source, in the order of the config."""
    limit = catalog.settings.max_num_frames
    return [_source_figures(source, files, limit) for source, files in by_source(catalog.files).items()]


def _source_figures(source: str, files: Sequence[CatalogFile], limit: int) -> SourceFigures:
    lengths = np.concatenate([file.measured.lengths[file.selected] for file in files])
    return SourceFigures(
        source,
        samples=sum(file.num_samples for file in files),
        used=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        tiles=sum(int(file.measured.tiles[file.selected].sum(dtype=np.int64)) for file in files),
        resampled=sum(int((file.measured.frame_limits[file.selected] < limit).sum()) for file in files),
        quarantined=unusable_reasons(files),
        lengths=length_classes(lengths),
    )


def length_classes(lengths: np.ndarray) -> Histogram:
    """Histogram of lengths [n] between powers of two."""
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
    """Fraction of the positions that hold a token, 0 to 1."""
    fills: Histogram
    """Sequences by their fill."""
    first: list[np.ndarray]
    """Of each of the first sequences, [k] tokens of its documents."""


def packing_figures(catalog: Catalog, plan: PackingPlan, sequence_length: int) -> PackingFigures:
    """Figures of the plan of an epoch."""
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
    """Pack all windows of a plan; `show` is called with the number of packed sequences."""
    number = 0
    while plan.sequence(number) is not None:
        number += WINDOW_SEQUENCES // 2
        show(number)


@dataclass(frozen=True)
class Imbalance:
    """Excess of work of the busiest replica of a step over the mean, for which the other replicas wait."""

    replicas: int
    steps: int
    """Number of measured steps."""
    mean: float
    """Mean excess over these steps, as a fraction of the mean work."""
    worst: float
    """Largest excess."""
    in_order: float
    """Mean excess if the sequences were assigned to the replicas in order."""
    classes: Histogram
    """Steps by their excess."""


def steps_of(plan: PackingPlan, config: Config) -> int:
    """Number of steps that `imbalance` measures."""
    return min(max(plan.num_sequences // config.training.global_batch_size, 1), MAX_STEPS)


def imbalance(
    catalog: Catalog, plan: PackingPlan, config: Config, replicas: int, show: Callable[[int], None]
) -> Imbalance:
    """Measure steps of the first epoch, divided as in training; `show` is called with the number of steps done.

    Raises DataError if a step cannot be divided among `replicas`.
    """
    size = config.training.global_batch_size
    if size % replicas:
        raise DataError(
            f"training.global_batch_size {size} cannot be divided among {replicas} replicas; give another --replicas"
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
    """Work of each sequence, [steps, global_batch_size] float64. An epoch shorter than one step is repeated."""
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
    """A sentence about the balance of the work of the replicas."""
    return (
        f"over {found.replicas} replicas the busiest one of a step has {found.mean:.2%} more work than the mean "
        f"({found.worst:.2%} in the worst of {found.steps} steps; {found.in_order:.2%} in the order of the sequences)"
    )
