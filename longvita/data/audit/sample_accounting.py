"""Sample accounting of a run: what became of every sample that its plan took.

planned = delivered + quarantined, for each source, at every layout and over every stop. Planned samples are counted
from the plan, delivered and quarantined ones where batches are assembled. So the two sides of the sum come from
different places, and documents that were read ahead and discarded by a stop are not counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longvita.data.document import Document
from longvita.data.loading.micro_batch import ReadMicroBatch
from longvita.data.mix.catalog import Catalog, by_source, unusable_reasons
from longvita.data.packing.packer import SequenceStream
from longvita.data.quarantine import FILE_NAME as QUARANTINE

FILE_NAME = "sample_accounting.json"
"""Name of the file below a run's output folder."""
PLANNED, REPEATED, DELIVERED, SUBSTITUTED = "planned", "repeated", "delivered", "substituted"
"""A sample that the plan took; one of those that it had taken before (a ratio above 1, a later epoch); one that a batch
held; one that a batch held before its own turn, in a sequence substituted for another that had no usable document."""
REPLACED_FRAMES = "replaced_frames"
"""A damaged frame of a delivered or substituted sample, replaced by the nearest intact one."""
OUTCOMES = (PLANNED, DELIVERED, REPEATED, SUBSTITUTED, REPLACED_FRAMES)

OutcomeCounts = Counter[tuple[str, str]]
"""Numbers of samples by source, and by one of OUTCOMES or, for quarantined ones, a reason word."""


@dataclass(frozen=True)
class SampleAccounting:
    """Counts of one stage, summed over its replicas and over all processes since the stage began."""

    counts: OutcomeCounts = field(default_factory=Counter)
    data: str = ""
    """Hash of what the plans are made of (plan_cache.plan_name); empty before the first start."""
    changes: tuple[int, ...] = ()
    """Sequences at which the stage resumed with other data: from there on the order is another one, and in that epoch
    samples may come twice or never."""

    def plus(self, parts: Iterable[OutcomeCounts]) -> SampleAccounting:
        """Add the counts of more sequences."""
        total = Counter(self.counts)
        for counts in parts:
            total.update(counts)
        return dataclasses.replace(self, counts=total)

    def started_on(self, data: str, sequence: int) -> SampleAccounting:
        """Note that the stage starts or resumes at a sequence, with data of this hash."""
        changes = (*self.changes, sequence) if self.data not in ("", data) else self.changes
        return dataclasses.replace(self, data=data, changes=changes)

    def to_facts(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        counts = [[source, word, number] for (source, word), number in sorted(self.counts.items())]
        return {"data": self.data, "changes": list(self.changes), "counts": counts}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> SampleAccounting:
        """Restore what `to_facts` returned."""
        counts = Counter({(source, word): number for source, word, number in facts["counts"]})
        return cls(counts, facts["data"], tuple(facts["changes"]))

    def of_source(self, source: str) -> dict[str, Any]:
        """Return the counts of one source: each of OUTCOMES, and `quarantined` by reason word."""
        own = {word: number for (name, word), number in sorted(self.counts.items()) if name == source}
        reasons = {word: number for word, number in own.items() if word not in OUTCOMES}
        return {**{word: self.counts[source, word] for word in OUTCOMES}, "quarantined": reasons}

    def report(self, catalog: Catalog, consumed_sequences: int) -> dict[str, Any]:
        """Return sample_accounting.json: sums over all sources, and each source with the samples that no plan can use.

        `quarantine` names the file that lists each sample that is not trained on, quarantined or unusable.
        """
        sources: dict[str, dict[str, Any]] = {}
        for source, files in by_source(catalog.files).items():
            sources[source] = {**self.of_source(source), "unusable": unusable_reasons(files)}
        sums: dict[str, int] = {word: sum(one[word] for one in sources.values()) for word in OUTCOMES}
        for word in ("quarantined", "unusable"):
            sums[word] = sum(sum(one[word].values()) for one in sources.values())
        return {
            "sequences": consumed_sequences,
            "quarantine": QUARANTINE,
            "data_changed_at": list(self.changes),
            **sums,
            "sources": sources,
        }


class PlannedSamples:
    """Counts the samples that a stream's plan takes from sequence `start` on, and how many of them it took before."""

    def __init__(self, catalog: Catalog, stream: SequenceStream, start: int):
        self._catalog, self._stream, self._start = catalog, stream, start
        self._end = start
        self._seen = np.zeros(len(catalog.lengths), bool)
        self._counts = np.zeros((2, len(catalog.files)), np.int64)

    def counts_up_to(self, end: int) -> OutcomeCounts:
        """Count the samples planned and repeated in sequences [start, end); `end` never decreases from call to call."""
        if self._end == self._start < end:
            self._mark_seen()
        for number in range(self._end, end):
            self._take(self._stream.sequence(number))
        self._end = max(self._end, end)
        counts: OutcomeCounts = Counter()
        for file, planned, repeated in zip(self._catalog.files, *self._counts.tolist()):
            counts[file.source, PLANNED] += planned
            counts[file.source, REPEATED] += repeated
        return counts

    def _mark_seen(self) -> None:
        """Mark the samples in the sequences before `start`."""
        if self._stream.epoch_of(self._start):
            self._seen[self._catalog.selected] = True  # The first epoch takes them all.
        else:
            for number in range(self._start):
                self._seen[self._stream.sequence(number)] = True

    def _take(self, samples: np.ndarray) -> None:
        """Count the samples [k] of the next sequence."""
        distinct, first = np.unique(samples, return_index=True)
        repeated = np.ones(len(samples), bool)
        repeated[first] = self._seen[distinct]
        self._seen[distinct] = True
        files = self._catalog.file_numbers(samples)
        self._counts[0] += np.bincount(files, minlength=len(self._catalog.files))
        self._counts[1] += np.bincount(files[repeated], minlength=len(self._catalog.files))


def count_replaced_frames(read: ReadMicroBatch) -> OutcomeCounts:
    """Count the damaged frames that this process replaced in the documents that a batch is made of."""
    counts: OutcomeCounts = Counter()
    for document, (request, result) in enumerate(zip(read.micro_batch.requests, read.results)):
        if document not in read.broken and isinstance(result, Document) and result.replaced_frames:
            counts[request.source, REPLACED_FRAMES] += result.replaced_frames
    return counts


def count_outcomes(attempts: Sequence[ReadMicroBatch]) -> OutcomeCounts:
    """Count what became of the documents of a micro batch, by all attempts to read it.

    The first attempt reads the planned sequences, each later one substitutes others for those that turned out empty. Of
    a planned sequence, the last attempt to read it counts. Documents of a substitute are counted as SUBSTITUTED, since
    they come again in their turn.
    """
    planned = attempts[0].micro_batch.numbers
    quarantined: dict[int, OutcomeCounts] = {}
    for attempt in attempts:
        delivered, own = OutcomeCounts(), attempt.micro_batch.positions_of(planned)
        quarantined |= {position: OutcomeCounts() for position in own}
        documents = zip(attempt.micro_batch.requests, attempt.micro_batch.sequences)
        for document, (request, position) in enumerate(documents):
            if document not in attempt.broken:
                delivered[request.source, DELIVERED if position in own else SUBSTITUTED] += 1
            elif position in own:
                quarantined[position][request.source, str(attempt.broken[document].reason)] += 1
    return sum(quarantined.values(), delivered)  # The batch is made of the documents of the last attempt.
