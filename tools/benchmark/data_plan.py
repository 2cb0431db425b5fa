"""The part of data.py on packing: an index of synthetic rows, its plan, the fill, and the balance of a step."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sample_lengths import KINDS, TOKENS_PER_TILE, SampleKind

from longvita.config.schema import Config
from longvita.data.formats.base import Part
from longvita.data.index.build import IndexPart
from longvita.data.index.columns import KIND_BITS, MEDIA_ROW, ROW, VIDEO_FILE, FileIndex
from longvita.data.index.editions import open_edition, write_edition
from longvita.data.media.item import MediaSettings
from longvita.data.mix.measure import Measured, measure
from longvita.data.mix.mixture import select_samples, shuffle
from longvita.data.packing.balance import WorkModel, divide
from longvita.data.packing.packer import WINDOW_SEQUENCES, EpochPlan

SHORT, LONG = 16384, 131072
REPLICAS, STEP, STEPS = 8, 64, 200
WINDOWS = 8
"""Number of windows that other packers pack."""
SIDE = 448


class PictureTemplate:
    """The part of a chat template that `measure` uses, for pictures without line breaks between their rows."""

    tokens_per_frame = TOKENS_PER_TILE

    @staticmethod
    def picture_length(grid: Any) -> int:
        """Tokens of a picture."""
        return TOKENS_PER_TILE * grid.num_tiles


@dataclass(frozen=True)
class PackedEpoch:
    """A packed epoch."""

    plan: EpochPlan
    measured: Measured
    samples_per_second: float
    """From the open index to the last packed sequence."""


def plan_figures(folder: Path, samples: int) -> dict[str, float]:
    """All results, for an index of `samples` rows with the distribution of the public mix."""
    size = _write_index(folder, samples)
    start = time.perf_counter()
    index = open_edition(folder)
    opened = time.perf_counter() - start
    short, long = _plan(index, SHORT, 63), _plan(index, LONG, 508)
    return {
        "plan_samples_per_second": short.samples_per_second,
        "index_bytes_per_sample": size / samples,
        "open_seconds": opened,
        "fill": short.plan.fill,
        "fill_long": long.plan.fill,
        **_imbalance(short),
        **_other_packers(short.plan),
    }


def _write_index(folder: Path, samples: int) -> int:
    """Write the columns and return their bytes on disk."""
    rows, media = _columns(list(KINDS.values()), list(KINDS), samples, np.random.default_rng(0))
    index = FileIndex(rows, media, np.ones(1), ())
    write_edition(folder, [IndexPart(Part(0, 1), "", samples, index)], [0, 0, 0], 1)
    return sum(file.stat().st_size for file in folder.iterdir())


def _columns(
    kinds: list[SampleKind], names: list[str], samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and media of samples of these kinds: a picture, several pictures of one tile, or a video of 1 frame/s."""
    chosen = rng.choice(len(kinds), samples, p=[kind.share for kind in kinds])
    rows, tiles = np.zeros(samples, ROW), np.zeros(samples, np.int64)
    for number, kind in enumerate(kinds):
        own = np.flatnonzero(chosen == number)
        text = rng.lognormal(np.log(kind.median), kind.sigma, len(own))
        rows["text_tokens"][own] = np.clip(text, kind.shortest, kind.longest).astype(np.uint32)
        low, high, weights = (np.asarray(column) for column in zip(*kind.tiles))
        choice = rng.choice(len(weights), len(own), p=weights / weights.sum())
        tiles[own] = rng.integers(low[choice], high[choice] + 1)
    single, several = (chosen == names.index(name) for name in ("one picture", "several pictures"))
    counts = np.where(several, tiles, np.minimum(tiles, 1))
    rows["media_end"] = np.cumsum(counts)
    rows["line"], rows["size"] = np.arange(1, samples + 1), 700
    rows["offset"], rows["names"] = np.arange(samples) * 700, rng.integers(0, 2**63, samples)
    media = np.zeros(int(counts.sum()), MEDIA_ROW)
    # A picture is a grid of n x 1 tiles and its thumbnail; the number of a video's frames is below its kind bits.
    columns = np.repeat(np.where(single, np.maximum(tiles - 1, 1), 1), counts)
    pictures = np.repeat(single | several, counts)
    media["extent"] = np.where(pictures, columns * SIDE, VIDEO_FILE << KIND_BITS | np.repeat(tiles, counts))
    media["detail"] = np.where(pictures, SIDE, 0)
    return rows, media


def _plan(index: FileIndex, length: int, frames: int) -> PackedEpoch:
    start = time.perf_counter()
    settings = MediaSettings(max_num_frames=frames)
    measured = measure(index, PictureTemplate(), settings, length)  # type: ignore[arg-type]
    taken = measured.usable[select_samples(len(measured.usable), 1.0, len(index), 42, "source/file")]
    samples = shuffle(taken, 42, 0)
    plan = EpochPlan(samples, measured.lengths[samples], length, 42, 0)
    packed = plan.num_sequences
    seconds = time.perf_counter() - start
    if packed * length < int(measured.lengths[taken].sum(dtype=np.int64)):
        raise RuntimeError("the plan has fewer sequences than its tokens need")
    return PackedEpoch(plan, measured, len(index) / seconds)


def _imbalance(planned: PackedEpoch) -> dict[str, float]:
    """Work of the slowest replica divided by the mean, for a 14B model and the worst step; also without balancing."""
    model, measured = WorkModel.of(Config()), planned.measured
    balanced, in_order = [], []
    samples, bounds = planned.plan.flat()
    for step in range(min(STEPS, planned.plan.num_sequences // STEP)):
        own = bounds[step * STEP : (step + 1) * STEP + 1]
        documents, starts = samples[own[0] : own[-1]], own[:-1] - own[0]
        work = model.of_sequences(measured.lengths[documents], measured.tiles[documents], starts, isolated=True)
        mean = work.sum() / REPLICAS
        balanced.append(np.bincount(divide(work, REPLICAS), work).max() / mean)
        in_order.append(np.bincount(np.arange(STEP) % REPLICAS, work).max() / mean)
    return {
        "step_imbalance": float(np.max(balanced)),
        "step_imbalance_in_order": float(np.max(in_order)),
    }


def _other_packers(plan: EpochPlan) -> dict[str, float]:
    """Our fill divided by that of other packers, for the same samples in windows of the same size."""
    ends = np.cumsum(plan.lengths[: len(plan.lengths) // 2]) // (WINDOW_SEQUENCES * plan.sequence_length)
    windows = [plan.lengths[: len(ends)][ends == number].tolist() for number in range(min(WINDOWS, int(ends[-1])))]
    count, room = sum(map(len, windows)), plan.sequence_length
    own = EpochPlan(plan.samples[:count], plan.lengths[:count], room, 42, 0).num_sequences
    packers: dict[str, Callable[[Sequence[int], int], int]] = {
        "first_fit_decreasing": lambda x, room: first_fit(sorted(x, reverse=True), room),
        "first_fit_shuffled": first_fit,
        "best_fit_shuffled": best_fit_in_order,
        "greedy_knapsack": greedy_knapsack,
    }
    return {f"fill_over_{name}": sum(packer(x, room) for x in windows) / own for name, packer in packers.items()}


def first_fit(lengths: Sequence[int], room: int) -> int:
    """Number of bins of first fit in the given order, as in NVIDIA NeMo; first-fit decreasing for sorted lengths."""
    left, used = np.full(len(lengths) + 1, room), 0
    for length in lengths:
        place = int(np.argmax(left[: used + 1] >= length))
        left[place] -= length
        used = max(used, place + 1)
    return used


def best_fit_in_order(lengths: Sequence[int], room: int) -> int:
    """Number of bins of best fit, in the given order."""
    left: list[int] = []
    bins = 0
    for length in lengths:
        place = bisect.bisect_left(left, length)
        bins += place == len(left)
        rest = (left.pop(place) if place < len(left) else room) - length
        bisect.insort(left, rest)
    return bins


def greedy_knapsack(lengths: Sequence[int], room: int, at_once: int = 1000) -> int:
    """Number of bins of LLaMA-Factory's greedy knapsack, which takes the longest fitting sample of a thousand."""
    bins = 0
    for start in range(0, len(lengths), at_once):
        rest = sorted(lengths[start : start + at_once])
        while rest:
            bins, left = bins + 1, room
            while rest and (place := bisect.bisect(rest, left)):
                left -= rest.pop(place - 1)
    return bins
