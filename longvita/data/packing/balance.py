"""Which replica takes which sequences of a step: equally many each, and work as even as that allows.

A step is over when the slowest replica is, and the work of sequences of the same length differs: attention costs the
square of each document, a tile costs a pass of the vision tower. The step's sequences stay the same whatever the number
of replicas, so the loss and the gradient do too.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from longvita.config.flops import Workload, training_flops
from longvita.config.schema import Config
from longvita.data.mix.catalog import Catalog
from longvita.data.packing.packer import SequenceStream

MOST_EXCHANGES = 64
"""Exchanges of two sequences after the first division; few are needed."""
SMALLEST_GAIN = 1e-4
"""Share of the work that an exchange must win."""


@dataclass(frozen=True)
class WorkModel:
    """Operations of a training step for each part of a document, see longvita.config.flops."""

    per_token: int
    per_pair: int
    """Of a query and a key that it sees."""
    per_tile: int

    @classmethod
    def of(cls, config: Config) -> WorkModel:
        """Of a run's model and what is trained of it, without the head: an index does not tell what carries loss."""
        units = [Workload(tokens=1), Workload(attention_pairs=1), Workload(tiles=1)]
        return cls(*(training_flops(config.model, unit, config.training.trainable) for unit in units))

    def of_sequences(self, lengths: np.ndarray, tiles: np.ndarray, starts: np.ndarray, isolated: bool) -> np.ndarray:
        """[n] float64: of n sequences of documents of these lengths and tiles [d]; `starts` [n]: the first of each.

        `isolated`: each document attends to itself alone.
        """
        lengths = lengths.astype(np.float64)
        tokens = np.add.reduceat(lengths, starts)
        pairs = np.add.reduceat(lengths**2, starts) / 2 if isolated else tokens**2 / 2
        of_tiles = np.add.reduceat(tiles.astype(np.float64), starts)
        return self.per_token * tokens + self.per_pair * pairs + self.per_tile * of_tiles


@dataclass(frozen=True)
class StepDivision:
    """Divides the sequences of a step of one stream among replicas."""

    catalog: Catalog
    stream: SequenceStream
    work: WorkModel
    isolated: bool
    """Whether documents of a sequence attend to themselves alone."""

    def replicas(self, sequences: np.ndarray, replicas: int) -> np.ndarray:
        """[n] int64: the replica that takes each of a step's sequences [n], of their numbers in the stream."""
        documents = [self.stream.sequence(number) for number in sequences.tolist()]
        starts = np.cumsum([0, *map(len, documents[:-1])])
        samples = np.concatenate(documents)
        lengths, tiles = self.catalog.lengths[samples], self.catalog.tiles[samples]
        return divide(self.work.of_sequences(lengths, tiles, starts, self.isolated), replicas)


def divide(work: np.ndarray, replicas: int) -> np.ndarray:
    """The replica [n] that takes each sequence of a step, of which `work` [n] is the work: n / replicas for each.

    The heaviest first, each goes to the replica with the least work that still has a place; then pairs are exchanged
    between the replica with the most work and others while that lowers the most. Where taking them in turn is better
    even so, that is the division. A function of its arguments alone.
    Raises ValueError if the sequences cannot be divided evenly.
    """
    if len(work) % replicas:
        raise ValueError(f"{len(work)} sequences of a step cannot be divided evenly among {replicas} replicas")
    owners = np.empty(len(work), np.int64)
    loads = [(0.0, replica) for replica in range(replicas)]
    places = [len(work) // replicas] * replicas
    for number in np.argsort(-work, kind="stable").tolist():
        load, replica = heapq.heappop(loads)
        owners[number] = replica
        places[replica] -= 1
        if places[replica]:
            heapq.heappush(loads, (load + float(work[number]), replica))
    for _ in range(MOST_EXCHANGES):
        if not _exchange(work, owners, replicas):
            break
    in_turn = np.arange(len(work)) % replicas
    return min(owners, in_turn, key=lambda division: np.bincount(division, work, replicas).max())


def _exchange(work: np.ndarray, owners: np.ndarray, replicas: int) -> bool:
    """Exchanges the pair between the busiest replica and another that wins most, in place; False if none does."""
    loads = np.bincount(owners, work, replicas)
    busiest = int(loads.argmax())
    own, others = np.flatnonzero(owners == busiest), np.flatnonzero(owners != busiest)
    moved = work[own][:, None] - work[others][None]
    # What the busier of the two has afterwards.
    most = np.maximum(loads[busiest] - moved, loads[owners[others]][None] + moved)
    if not most.size or most.min() >= loads[busiest] * (1 - SMALLEST_GAIN):
        return False
    first, second = np.unravel_index(int(most.argmin()), most.shape)
    owners[own[first]], owners[others[second]] = owners[others[second]], busiest
    return True
