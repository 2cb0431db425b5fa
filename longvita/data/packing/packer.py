"""Packing: which documents make up training sequence k, as a pure function of (samples, lengths, seed, epoch, length).

An epoch's samples, shuffled, are cut into windows that would fill a thousand sequences. Within a window each document
goes, whole, into the fullest sequence that still has room for it (best fit): long ones first, the longest before the
others, then short ones in their shuffled order, so that they mix. Sorting the short ones too would fill a thousandth
more and put equal lengths, and so the same kinds of samples, side by side.
The emptiest sequence of a window is not used: its documents are the next window's first.
A window depends on nothing after it, so a run starts when the first window is packed, and packing the windows again
gives the same sequences: ranks, workers and restarts need no state.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Protocol

import numpy as np

PACKER_VERSION = 1
"""Raised when the same samples are packed otherwise: plans that were stored are not used then."""
WINDOW_SEQUENCES = 1024
"""Sequences that a window's tokens would fill."""
LONG_SHARE = 1 / 8
"""Share of a sequence above which a document counts as long."""


class PackingPlan(Protocol):
    """The sequences of one epoch."""

    @property
    def fill(self) -> float:
        """Share of the epoch's positions that hold a document's token."""

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole epoch."""

    def sequence(self, number: int) -> np.ndarray | None:
        """[k] int64: the samples of sequence `number` of the epoch, in order; None past its end."""

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole epoch, of n sequences: [d] int64, the samples of one after the other, and [n + 1], their bounds."""


class EpochPlan:
    """The sequences of one epoch, packed window by window as they are asked for."""

    def __init__(self, samples: np.ndarray, lengths: np.ndarray, sequence_length: int, seed: int, epoch: int):
        """samples: [d] int64, in the epoch's order; lengths: [d] int64, their tokens, none above sequence_length."""
        self.samples, self.lengths = samples, lengths
        self.sequence_length = sequence_length
        self._seed, self._epoch = seed, epoch
        self._window_ends = _cut_windows(lengths, WINDOW_SEQUENCES * sequence_length)
        self._windows_packed = 0
        self._left_over = np.zeros(0, np.int64)
        """Places of documents that the last window left to the next."""
        self._sequences: list[np.ndarray] = []

    def again(self) -> EpochPlan:
        """The same plan, of which nothing is packed yet."""
        return EpochPlan(self.samples, self.lengths, self.sequence_length, self._seed, self._epoch)

    def starts_window(self, number: int) -> bool:
        """Whether sequence `number` is the first of one that is not packed yet."""
        return number >= len(self._sequences)

    def sequence(self, number: int) -> np.ndarray | None:
        """[k] int64: the samples of sequence `number` of the epoch, in order; None past its end."""
        while number >= len(self._sequences):
            if self._windows_packed == len(self._window_ends):
                return None
            self._pack_window()
        return self._sequences[number]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """See PackingPlan."""
        bounds = np.zeros(self.num_sequences + 1, np.int64)
        np.cumsum([len(samples) for samples in self._sequences], out=bounds[1:])
        return np.concatenate([np.zeros(0, np.int64), *self._sequences]), bounds

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole epoch."""
        while self._windows_packed < len(self._window_ends):
            self._pack_window()
        return len(self._sequences)

    @property
    def fill(self) -> float:
        """Share of the epoch's positions that hold a document's token."""
        return float(self.lengths.sum()) / max(self.num_sequences * self.sequence_length, 1)

    def _pack_window(self) -> None:
        window = self._windows_packed
        start = self._window_ends[window - 1] if window else 0
        end = self._window_ends[window]
        places = np.concatenate([self._left_over, np.arange(start, end)])
        lengths = self.lengths[places]
        bins = best_fit(lengths.tolist(), self.sequence_length)
        self._left_over = np.zeros(0, np.int64)
        if end < len(self.samples):
            emptiest = min(range(len(bins)), key=lambda number: int(lengths[bins[number]].sum()))
            self._left_over = places[np.sort(bins.pop(emptiest))]
        order = np.random.default_rng([self._seed, self._epoch, window]).permutation(len(bins))
        # Documents of a sequence keep the shuffled order they came in, not the order of their lengths.
        self._sequences += [self.samples[places[np.sort(bins[position])]] for position in order]
        self._windows_packed += 1


def _cut_windows(lengths: np.ndarray, window_tokens: int) -> list[int]:
    """Ends of the windows: each holds whole documents of about `window_tokens` tokens in all."""
    if len(lengths) == 0:
        return []
    window = (np.cumsum(lengths) - 1) // window_tokens
    return [*(np.flatnonzero(np.diff(window)) + 1).tolist(), len(lengths)]


def best_fit(lengths: list[int], room: int) -> list[np.ndarray]:
    """Numbers of the documents in each bin of size `room`; every document in one bin. Raises ValueError if one is
    longer than `room`.
    """
    bins: list[list[int]] = []
    rooms: list[int] = []  # Room left in open bins, ascending, and beside it the bins' numbers.
    open_bins: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda number: -max(lengths[number], room * LONG_SHARE)):
        length = lengths[document]
        if not 0 < length <= room:
            raise ValueError(f"document {document} has {length} tokens; a sequence takes 1 to {room}")
        position = bisect.bisect_left(rooms, length)
        if position == len(rooms):
            left, number = room, len(bins)
            bins.append([])
        else:
            left, number = rooms.pop(position), open_bins.pop(position)
        bins[number].append(document)
        if left > length:
            position = bisect.bisect_left(rooms, left - length)
            rooms.insert(position, left - length)
            open_bins.insert(position, number)
    return [np.asarray(documents, np.int64) for documents in bins]


class SequenceStream:
    """The endless stream of training sequences: epoch after epoch, each a plan of its own."""

    def __init__(self, plan_epoch: Callable[[int], PackingPlan]):
        """`plan_epoch(epoch)` gives an epoch's plan; it must hold at least one sequence."""
        self._plan_epoch = plan_epoch
        self._starts = [0]
        self._plans: dict[int, PackingPlan] = {}

    def sequence(self, number: int) -> np.ndarray:
        """[k] int64: the samples of sequence `number` of the stream, counted from the start of training."""
        epoch = bisect.bisect_right(self._starts, number) - 1
        while True:
            plan = self._plan(epoch)
            documents = plan.sequence(number - self._starts[epoch])
            if documents is not None:
                return documents
            epoch += 1
            if epoch == len(self._starts):
                self._starts.append(self._starts[-1] + plan.num_sequences)

    def epoch_of(self, number: int) -> int:
        """The epoch that sequence `number` of the stream belongs to, from 0."""
        self.sequence(number)
        return bisect.bisect_right(self._starts, number) - 1

    def _plan(self, epoch: int) -> PackingPlan:
        if epoch not in self._plans:
            self._plans = {epoch: self._plan_epoch(epoch)}
        return self._plans[epoch]
