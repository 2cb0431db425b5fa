"""Divides the sequences of a step among the replicas: equally many each, with work as equal as possible.

A step takes as long as its slowest replica, and sequences of equal length differ in work: attention is quadratic in
each document, a tile takes a pass of the vision encoder. The set of sequences of a step does not depend on the number
of replicas, and neither do the loss and the gradient.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from longvita.config.flops import Workload, training_flops
from longvita.config.schema import Config
from longvita.data.mix.catalog import Catalog
from longvita.data.packing.packer import SequenceStream

MAX_EXCHANGES = 64
"""Limit on exchanges of two sequences after the first division; few are needed."""
MIN_GAIN = 1e-4
"""Fraction of the work that an exchange must save."""


@dataclass(frozen=True)
class WorkModel:
    """Operations of a training step per part of a document (longvita.config.flops)."""

    per_token: int
    per_pair: int
    """Per pair of a query and a key that it attends to."""
    per_tile: int

    @classmethod
    def of(cls, config: Config) -> WorkModel:
        """Model the work of a run, without the head: an index does not contain which tokens have a loss."""
        units = [Workload(tokens=1), Workload(attention_pairs=1), Workload(tiles=1)]
        return cls(*(training_flops(config.model, unit, config.training.trainable) for unit in units))

    def of_sequences(self, lengths: np.ndarray, tiles: np.ndarray, starts: np.ndarray, isolated: bool) -> np.ndarray:
        """Return the operations [n] float64 of n sequences, from lengths and tiles [d] of their documents.

        starts: [n], the first document of each sequence. isolated: each document attends to itself alone.
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
    """Whether each document of a sequence attends to itself alone."""

    def replicas(self, sequences: np.ndarray, replicas: int) -> np.ndarray:
        """Return the replica [n] int64 of each sequence of a step, by their numbers [n] in the stream."""
        documents = [self.stream.sequence(number) for number in sequences.tolist()]
        starts = np.cumsum([0, *map(len, documents[:-1])])
        samples = np.concatenate(documents)
        lengths, tiles = self.catalog.lengths[samples], self.catalog.tiles[samples]
        return divide(self.work.of_sequences(lengths, tiles, starts, self.isolated), replicas)


def divide(work: np.ndarray, replicas: int) -> np.ndarray:
    """Return the replica [n] of each sequence of a step from their work [n]; each replica gets n / replicas.

    In the order of decreasing work, each sequence goes to the replica with the least work that has a place left. Then
    pairs are exchanged between the replica with the most work and others while that lowers the maximum. If assigning
    the sequences in turn is better than the result, that is returned. Deterministic.
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
    for _ in range(MAX_EXCHANGES):
        if not _exchange(work, owners, replicas):
            break
    in_turn = np.arange(len(work)) % replicas
    return min(owners, in_turn, key=lambda division: np.bincount(division, work, replicas).max())


def _exchange(work: np.ndarray, owners: np.ndarray, replicas: int) -> bool:
    """Exchange, in place, the pair of sequences that most relieves the busiest replica; return False if none does."""
    loads = np.bincount(owners, work, replicas)
    busiest = int(loads.argmax())
    own, others = np.flatnonzero(owners == busiest), np.flatnonzero(owners != busiest)
    moved = work[own][:, None] - work[others][None]
    # Work of the busier of the two replicas afterwards.
    most = np.maximum(loads[busiest] - moved, loads[owners[others]][None] + moved)
    if not most.size or most.min() >= loads[busiest] * (1 - MIN_GAIN):
        return False
    first, second = np.unravel_index(int(most.argmin()), most.shape)
    owners[own[first]], owners[others[second]] = owners[others[second]], busiest
    return True
