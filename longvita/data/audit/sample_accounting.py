"""The account of a run: what became of every sample that its plan took.

planned = delivered + set aside, for each source, at every layout and over every stop. What a plan takes is counted from
the plan itself, what is delivered and set aside where batches are put together, so that the two sides of the sum come
from different places, and documents that were read ahead and thrown away by a stop count nowhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longvita.data.mix.catalog import Catalog
from longvita.data.packing.packer import SequenceStream
from longvita.data.quarantine import FILE_NAME as QUARANTINE
from longvita.data.quarantine import count_reasons

FILE_NAME = "sample_accounting.json"
"""Name of the file below a run's output folder."""
PLANNED, REPEATED, DELIVERED, SUBSTITUTED = "planned", "repeated", "delivered", "substituted"
"""A sample that the plan took; one of those that it took before (a ratio above 1, a later epoch); one that a batch
held; one of a sequence that stood in for another, of which nothing could be read, before its own turn."""
OUTCOMES = (PLANNED, DELIVERED, REPEATED, SUBSTITUTED)

OutcomeCounts = Counter[tuple[str, str]]
"""Numbers of samples by source, and by one of OUTCOMES or a reason word for those set aside."""


@dataclass(frozen=True)
class SampleAccounting:
    """Counts of one stage, summed over its replicas and over the processes that it was stopped and started in."""

    first_sequence: int = 0
    """Sequence of the stream from which on samples are counted: 0, unless the stage began before accounts were kept."""
    counts: OutcomeCounts = field(default_factory=Counter)
    data: str = ""
    """Hash of what the plans are made of (plan_cache.plan_name); empty before the first start."""
    changes: tuple[int, ...] = ()
    """Sequences at which the stage was started again with other data: from there on the order is another one, and in
    that epoch samples may come twice or never."""

    def plus(self, parts: Iterable[OutcomeCounts]) -> SampleAccounting:
        """With the counts of more sequences."""
        total = Counter(self.counts)
        for counts in parts:
            total.update(counts)
        return dataclasses.replace(self, counts=total)

    def over(self, data: str, sequence: int) -> SampleAccounting:
        """Going on at a sequence, over data of this hash."""
        changes = (*self.changes, sequence) if self.data not in ("", data) else self.changes
        return dataclasses.replace(self, data=data, changes=changes)

    def to_facts(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        counts = [[source, word, number] for (source, word), number in sorted(self.counts.items())]
        kept = {"first_sequence": self.first_sequence, "data": self.data, "changes": list(self.changes)}
        return {**kept, "counts": counts}

    @classmethod
    def from_facts(cls, facts: dict[str, Any] | None, consumed_sequences: int) -> SampleAccounting:
        """The inverse; an account that begins here where a checkpoint has none, as older ones do."""
        if facts is None:
            return cls(consumed_sequences)
        counts = Counter({(source, word): n for source, word, n in facts["counts"]})
        return cls(facts["first_sequence"], counts, facts.get("data", ""), tuple(facts.get("changes", ())))

    def of_source(self, source: str) -> dict[str, Any]:
        """The counts of one source: each of OUTCOMES, and `quarantined` by reason word."""
        reasons = {
            word: n for (name, word), n in sorted(self.counts.items()) if name == source and word not in OUTCOMES
        }
        return {**{word: self.counts[source, word] for word in OUTCOMES}, "quarantined": reasons}

    def report(self, catalog: Catalog, consumed_sequences: int) -> dict[str, Any]:
        """sample_accounting.json: sums over all sources, and each source with the samples that no plan could use.

        `quarantine` names the file that lists each sample of both kinds that are not trained on.
        """
        unusable: dict[str, list] = {file.source: [] for file in catalog.files}
        for entry in catalog.quarantined:
            unusable[entry.source].append(entry)
        sources = {
            source: {**self.of_source(source), "unusable": count_reasons(entries)}
            for source, entries in unusable.items()
        }
        sums: dict[str, int] = {word: sum(one[word] for one in sources.values()) for word in OUTCOMES}
        for word in ("quarantined", "unusable"):
            sums[word] = sum(sum(one[word].values()) for one in sources.values())
        place: dict[str, Any] = {"sequences": [self.first_sequence, consumed_sequences], "quarantine": QUARANTINE}
        place["data_changed_at"] = list(self.changes)
        return {**place, **sums, "sources": sources}


class PlannedSamples:
    """Counts what a stream's plan takes, from sequence `start` on, and how much of it the stream took before."""

    def __init__(self, catalog: Catalog, stream: SequenceStream, start: int):
        self._catalog, self._stream, self._start = catalog, stream, start
        self._end = start
        self._seen = np.zeros(0, bool)
        self._counts = np.zeros((2, len(catalog.files)), np.int64)

    def counts_up_to(self, end: int) -> OutcomeCounts:
        """Samples planned and repeated in the sequences from `start` to before `end`, which never goes back."""
        if self._end == self._start < end:
            self._seen = self._seen_before()
        for number in range(self._end, end):
            self._take(self._stream.sequence(number))
        self._end = max(self._end, end)
        counts: OutcomeCounts = Counter()
        for file, planned, repeated in zip(self._catalog.files, *self._counts.tolist()):
            counts[file.source, PLANNED] += planned
            counts[file.source, REPEATED] += repeated
        return counts

    def _seen_before(self) -> np.ndarray:
        """[n] bool: the samples of the sequences before `start`."""
        seen = np.zeros(len(self._catalog.lengths), bool)
        if self._stream.epoch_of(self._start):
            seen[self._catalog.taken] = True  # The first epoch took them all.
        else:
            for number in range(self._start):
                seen[self._stream.sequence(number)] = True
        return seen

    def _take(self, samples: np.ndarray) -> None:
        """samples: [k] those of the next sequence."""
        distinct, first = np.unique(samples, return_index=True)
        repeated = np.ones(len(samples), bool)
        repeated[first] = self._seen[distinct]
        self._seen[distinct] = True
        files = self._catalog.file_numbers(samples)
        self._counts[0] += np.bincount(files, minlength=len(self._catalog.files))
        self._counts[1] += np.bincount(files[repeated], minlength=len(self._catalog.files))
