"""Measure how long a step waits for its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from longvita.data.batch import LocalBatch


class TimedBatches(Iterator[LocalBatch]):
    """Yields micro batches and sums the time that each one took to arrive."""

    def __init__(self, batches: Iterator[LocalBatch], clock: Callable[[], float] = time.perf_counter):
        self._batches, self._clock = batches, clock
        self._seconds = 0.0

    def __next__(self) -> LocalBatch:
        start = self._clock()
        try:
            return next(self._batches)
        finally:
            self._seconds += self._clock() - start

    def take_seconds(self, device: torch.device) -> float:
        """Seconds waited since the last call, on the rank that waited longest: the other ranks wait for it.

        A collective over the whole world.
        """
        longest = torch.tensor(self._seconds, dtype=torch.float32, device=device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        self._seconds = 0.0
        return float(longest)
