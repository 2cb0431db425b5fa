"""Packing: which documents make up training sequence k, as a pure function of (samples, lengths, seed, epoch, length).

The shuffled samples of an epoch are cut into windows that would fill a thousand sequences. Within a window each
document goes, uncut, into the fullest sequence that has room for it (best fit): first the long ones, longest first,
then the short ones in their shuffled order, so that they mix. Sorting the short ones too would fill 0.1% more, but put
equal lengths, and so samples of one kind, next to each other.
The emptiest sequence of a window is not used: its documents are the first of the next window.
A window does not depend on later ones, so a run starts when the first window is packed. Packing again gives identical
sequences, so ranks, workers and restarts need no state.

Not a bin packing library: those sort all documents. The fill was measured against other methods (docs/benchmarks.md).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from pathlib import Path

import numpy as np

PACKER_VERSION = 1
"""Raise it when the packing of given samples changes, so that stored plans are not used."""
WINDOW_SEQUENCES = 1024
"""Sequences that the tokens of a window would fill."""
LONG_FRACTION = 1 / 8
"""Fraction of a sequence above which a document counts as long."""


class EpochPlan:
    """The sequences of one epoch, packed window by window when they are requested."""

    def __init__(self, samples: np.ndarray, lengths: np.ndarray, sequence_length: int, seed: int, epoch: int):
        """Plan an epoch: samples [d] int64 in its order, lengths [d] int64 in tokens, none above sequence_length."""
        self.samples, self.lengths = samples, lengths
        self.sequence_length = sequence_length
        self._seed, self._epoch = seed, epoch
        self._window_ends = _cut_windows(lengths, WINDOW_SEQUENCES * sequence_length)
        self._windows_packed = 0
        self._left_over = np.zeros(0, np.int64)
        """Positions of the documents that the last window left to the next."""
        self._sequences: list[np.ndarray] = []

    def unpacked_copy(self) -> EpochPlan:
        """Return a copy of the plan in which no window is packed yet."""
        return EpochPlan(self.samples, self.lengths, self.sequence_length, self._seed, self._epoch)

    def sequence(self, number: int) -> np.ndarray | None:
        """Return the samples [k] int64 of sequence `number` of the epoch, in order; None past its end."""
        while number >= len(self._sequences):
            if not self.pack_window():
                return None
        return self._sequences[number]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples [d] of all n sequences, one after the other, and their bounds [n + 1]."""
        sizes = [len(self._sequences[number]) for number in range(self.num_sequences)]
        return np.concatenate([np.zeros(0, np.int64), *self._sequences]), np.cumsum([0, *sizes], dtype=np.int64)

    @property
    def num_sequences(self) -> int:
        """Sequences of the epoch."""
        while self.pack_window():
            pass
        return len(self._sequences)

    @property
    def fill(self) -> float:
        """Fraction of the epoch's positions that hold a token of a document."""
        return float(self.lengths.sum()) / max(self.num_sequences * self.sequence_length, 1)

    def pack_window(self) -> bool:
        """Pack the next window; return False if all are packed."""
        window = self._windows_packed
        if window == len(self._window_ends):
            return False
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
        # Documents of a sequence keep their shuffled order, instead of that of their lengths.
        self._sequences += [self.samples[places[np.sort(bins[position])]] for position in order]
        self._windows_packed += 1
        return True


def _cut_windows(lengths: np.ndarray, window_tokens: int) -> list[int]:
    """Return the ends of the windows, each of about `window_tokens` tokens in uncut documents."""
    if len(lengths) == 0:
        return []
    window = (np.cumsum(lengths) - 1) // window_tokens
    return [*(np.flatnonzero(np.diff(window)) + 1).tolist(), len(lengths)]


def best_fit(lengths: list[int], room: int) -> list[np.ndarray]:
    """Return the numbers of the documents in each bin of size `room`; each document is in one bin.

    Raises ValueError if a document is longer than `room`.
    """
    bins: list[list[int]] = []
    rooms: list[int] = []  # Room left in the open bins, ascending.
    open_bins: list[int] = []  # Numbers of these bins.
    for document in sorted(range(len(lengths)), key=lambda number: -max(lengths[number], room * LONG_FRACTION)):
        length = lengths[document]
        if not 0 < length <= room:
            raise ValueError(f"document {document} has {length} tokens; a sequence has room for 1 to {room}")
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


class StoredPlan:
    """The plan of an epoch, mapped from files. The ranks of a machine use the same memory pages."""

    def __init__(self, path: Path):
        self._samples = np.load(path / "samples.npy", mmap_mode="r")
        self._starts = np.load(path / "starts.npy", mmap_mode="r")
        self.fill = float(np.load(path / "fill.npy"))
        self.num_sequences = len(self._starts) - 1

    def sequence(self, number: int) -> np.ndarray | None:
        """Return the samples [k] of sequence `number` of the epoch, in order; None past its end."""
        if number >= self.num_sequences:
            return None
        return np.asarray(self._samples[self._starts[number] : self._starts[number + 1]])

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples [d] of all n sequences, one after the other, and their bounds [n + 1]."""
        return self._samples, self._starts


PackingPlan = EpochPlan | StoredPlan


class SequenceStream:
    """The endless stream of training sequences: epoch after epoch, each with its own plan."""

    def __init__(self, plan_epoch: Callable[[int], PackingPlan]):
        """`plan_epoch(epoch)` returns the plan of an epoch, of at least one sequence."""
        self._plan_epoch = plan_epoch
        self._starts = [0]
        self._plans: dict[int, PackingPlan] = {}

    def sequence(self, number: int) -> np.ndarray:
        """Return the samples [k] int64 of sequence `number` of the stream, counted from the start of training."""
        epoch = bisect.bisect_right(self._starts, number) - 1
        while True:
            if epoch not in self._plans:
                self._plans = {epoch: self._plan_epoch(epoch)}
            plan = self._plans[epoch]
            documents = plan.sequence(number - self._starts[epoch])
            if documents is not None:
                return documents
            epoch += 1
            if epoch == len(self._starts):
                self._starts.append(self._starts[-1] + plan.num_sequences)

    def epoch_of(self, number: int) -> int:
        """Return the epoch of sequence `number` of the stream, from 0."""
        self.sequence(number)
        return bisect.bisect_right(self._starts, number) - 1
