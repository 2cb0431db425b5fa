"""A micro batch that is under way, and what became of its documents once it was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longvita.data.audit.sample_accounting import DELIVERED, SUBSTITUTED, OutcomeCounts
from longvita.data.document import DocumentRequest
from longvita.data.loading.broken_documents import Findings


@dataclass(frozen=True)
class MicroBatch:
    """A micro batch that is under way."""

    task: int
    """Its number among all that are read, those with spare sequences included."""
    numbers: list[int]
    """Its sequences in the stream."""
    requests: list[DocumentRequest]
    sequences: list[int]
    """Sequence of the micro batch that each document belongs to."""
    owners: list[np.ndarray]
    """[n] int64 each: vision rank that encodes each tile of each document."""


def owners_of_tiles(requests: Sequence[DocumentRequest], vision_size: int) -> list[np.ndarray]:
    """[n] int64 for each document of a micro batch: the vision rank that encodes each of its tiles."""
    from longvita.parallel.tile_sharing import assign_tiles  # Its module needs megatron-core; the others here don't.

    counts = np.asarray([request.num_tiles for request in requests], np.int64)
    owner_of_tile = assign_tiles(int(counts.sum()), vision_size).numpy()
    return np.split(owner_of_tile, np.cumsum(counts)[:-1]) if requests else []


def count_outcomes(tries: Sequence[tuple[MicroBatch, Findings]]) -> OutcomeCounts:
    """What became of the documents of a micro batch that was read once or, with spare sequences in it, several times.

    A sequence that another stood in for was set aside as it was found when it was last read; what stood in for it is
    counted apart, since it comes again in its turn.
    """
    planned = tries[0][0].numbers
    lost: dict[int, OutcomeCounts] = {}
    for micro_batch, findings in tries:
        own = {position for position, number in enumerate(micro_batch.numbers) if number == planned[position]}
        lost |= {position: Counter() for position in own}
        for document, error in findings.items():
            if (position := micro_batch.sequences[document]) in own:
                lost[position][micro_batch.requests[document].source, str(error.reason)] += 1
    counts: OutcomeCounts = sum(lost.values(), Counter())
    for document, (request, position) in enumerate(zip(micro_batch.requests, micro_batch.sequences)):
        if document not in findings:
            counts[request.source, DELIVERED if position in own else SUBSTITUTED] += 1
    return counts
