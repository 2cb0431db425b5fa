"""One packed sequence of the training stream: its documents, replica, micro batch and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvita.config.schema import Config
from longvita.config.sizes import replica_size
from longvita.data.document import DocumentReader, DocumentRequest
from longvita.data.errors import DataError
from longvita.data.loading.micro_batch import owners_of_tiles
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.packing.balance import StepDivision, WorkModel
from longvita.data.packing.packer import SequenceStream
from longvita.data.packing.plan_cache import plan_epoch
from longvita.data.report.spans import Span, loss_tokens, spans_of


@dataclass(frozen=True)
class DocumentView:
    """A document of a sequence."""

    request: DocumentRequest
    start: int
    """First position in the sequence."""
    loss_tokens: int
    spans: list[Span]
    owners: np.ndarray
    """[n] int64, ascending: the vision rank that encodes each of its tiles."""


@dataclass(frozen=True)
class SequenceView:
    """A packed sequence and its place in training."""

    number: int
    """Index in the stream, from 0."""
    epoch: int
    length: int
    """data.sequence_length, tokens."""
    step: int
    """Its optimizer step, from 1."""
    replicas: int
    replica: int
    """Its data-parallel replica, from 0."""
    micro_batch: int
    """Micro batch of the replica in that step, from 0."""
    tensor_parallel: int
    documents: list[DocumentView]

    @property
    def tokens(self) -> int:
        """Tokens of its documents; the rest of `length` is padding."""
        return sum(document.request.length for document in self.documents)

    def rank_name(self, rank: int) -> str:
        """Name of a rank of the replica that encodes tiles."""
        return f"rank {rank} (CP {rank // self.tensor_parallel}, TP {rank % self.tensor_parallel})"


def replicas_of(config: Config, replicas: int | None) -> int:
    """Data-parallel replicas: `replicas`, or those of layout.processes, or one.

    Raises DataError if a step cannot be divided among them.
    """
    training = config.training
    wanted = replicas or max((config.layout.processes or 1) // replica_size(config), 1)
    if training.global_batch_size % (wanted * training.micro_batch_size):
        raise DataError(
            f"training.global_batch_size {training.global_batch_size} is not a multiple of {wanted} replicas x "
            f"micro_batch_size {training.micro_batch_size}; give another --replicas"
        )
    return wanted


def view_sequence(config: Config, number: int, replicas: int | None) -> SequenceView:
    """Sequence `number` of the training stream of a run with `replicas` that started at step 0.

    Its text is read, its media files are not. Raises DataError, TokenizerError.
    """
    template, replicas = make_template(config), replicas_of(config, replicas)
    catalog = build_catalog(config, template, config.data.dataset)
    stream = SequenceStream(lambda epoch: plan_epoch(catalog, config, epoch))
    training, layout = config.training, config.layout
    step, place = divmod(number, training.global_batch_size)
    division = StepDivision(catalog, stream, WorkModel.of(config), config.data.isolate_documents)
    sequences = np.arange(number - place, number - place + training.global_batch_size)
    owner_replicas = division.replicas(sequences, replicas)
    own = sequences[owner_replicas == owner_replicas[place]].tolist()
    micro_batch = own.index(number) // training.micro_batch_size
    batch = own[micro_batch * training.micro_batch_size : (micro_batch + 1) * training.micro_batch_size]
    requests = [(one, catalog.request(sample)) for one in batch for sample in stream.sequence(one)]
    owners = owners_of_tiles([request for _, request in requests], layout.tensor_parallel * layout.context_parallel)
    reader, documents, start = DocumentReader(template, catalog.settings), [], 0
    for (one, request), mine in zip(requests, owners, strict=True):
        if one == number:
            encoded = reader.read(request).encoded
            spans = spans_of(encoded, template, mine)
            documents.append(DocumentView(request, start, loss_tokens(encoded), spans, mine))
            start += request.length
    return SequenceView(
        number=number,
        epoch=stream.epoch_of(number),
        length=config.data.sequence_length,
        step=step + 1,
        replicas=replicas,
        replica=int(owner_replicas[place]),
        micro_batch=micro_batch,
        tensor_parallel=layout.tensor_parallel,
        documents=documents,
    )
