"""A micro batch before and after its documents are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.data.document import Document, DocumentRequest
from longvita.data.errors import SampleError
from longvita.data.loading.assemble import PlacedDocument
from longvita.data.loading.broken_documents import Findings
from longvita.parallel.tile_sharing import assign_tiles


@dataclass(frozen=True)
class MicroBatch:
    """The documents of a micro batch, planned from counts alone."""

    task: int
    """Number of the reading task: each try to read a micro batch has its own."""
    numbers: list[int]
    """Its sequences, by their numbers in the stream."""
    requests: list[DocumentRequest]
    sequences: list[int]
    """For each document, the sequence of the micro batch that it belongs to, from 0."""
    owners: list[np.ndarray]
    """For each document, [n] int64: the vision rank that encodes each of its tiles."""

    def positions_of(self, planned: Sequence[int]) -> set[int]:
        """Return its sequences, from 0, that are still those of `planned` and not substitutes."""
        return {position for position, number in enumerate(self.numbers) if number == planned[position]}

    @property
    def decoders(self) -> list[int]:
        """Vision ranks that encode tiles of this micro batch, ascending."""
        return np.unique(np.concatenate([*self.owners, np.zeros(0, np.int64)])).tolist()


@dataclass(frozen=True)
class ReadMicroBatch:
    """A micro batch after this rank has read its documents and all ranks know which of them are broken."""

    micro_batch: MicroBatch
    results: list[Document | SampleError]
    """For each document, what this rank read."""
    broken: Findings
    """Documents that no rank of the replica uses."""

    @property
    def empty_sequences(self) -> set[int]:
        """Sequences of the micro batch, from 0, without a usable document."""
        sequences = enumerate(self.micro_batch.sequences)
        usable = {sequence for document, sequence in sequences if document not in self.broken}
        return set(range(len(self.micro_batch.numbers))) - usable

    def usable_documents(self) -> Iterator[PlacedDocument]:
        """Yield the documents that the batch is made of, in order."""
        parts = zip(self.micro_batch.requests, self.micro_batch.sequences, self.micro_batch.owners, self.results)
        for document, (request, sequence, owners, result) in enumerate(parts):
            if document not in self.broken and not isinstance(result, SampleError):
                yield PlacedDocument(result.encoded, request.source, sequence, owners, result.pixels)


def owners_of_tiles(requests: Sequence[DocumentRequest], vision_size: int) -> list[np.ndarray]:
    """Return the vision rank that encodes each tile of each document of a micro batch: [n] int64 for each document."""
    counts = np.asarray([request.num_tiles for request in requests], np.int64)
    owner_of_tile = assign_tiles(int(counts.sum()), vision_size).numpy()
    return np.split(owner_of_tile, np.cumsum(counts)[:-1]) if requests else []
