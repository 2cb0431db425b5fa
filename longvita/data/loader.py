"""The data loader: the endless stream of micro batches of one rank.

Sequence k of the stream is the same whatever the layout. The replicas together take the sequences step by step in
order, so a global batch is the same set, and a run goes on at any layout from the number of sequences consumed. Within
a step the sequences are divided among the replicas so that each has as much work, see longvita.data.packing.balance.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from longvita.config.schema import Config, DatasetConfig
from longvita.data.audit.sample_accounting import OutcomeCounts, PlannedSamples
from longvita.data.batch import LocalBatch
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import Document, DocumentReader, DocumentRequest
from longvita.data.errors import DataError, SampleError
from longvita.data.loading.assemble import PlacedDocument, assemble
from longvita.data.loading.broken_documents import Findings, LocalFindings, ReplicaFindings, SharedFindings, Store
from longvita.data.loading.micro_batch import MicroBatch, count_outcomes, owners_of_tiles
from longvita.data.loading.tile_memory import TilePool
from longvita.data.loading.worker import WorkerSetup
from longvita.data.loading.worker_pool import InlineReader, WorkerPool
from longvita.data.mix.catalog import Catalog, build_catalog, make_template
from longvita.data.mix.missing_files import count_missing, describe_missing
from longvita.data.packing.balance import StepDivision, WorkModel
from longvita.data.packing.packer import SequenceStream
from longvita.data.packing.plan_cache import plan_epoch, plan_name
from longvita.data.quarantine import FILE_NAME, QuarantinedSample, QuarantineFile, count_reasons

VALIDATION = "validation/"
"""Start of the split names of held-out sources."""
SPARES = 3
"""Sequences that are tried in the place of one in which every document turned out broken."""
SHORTEST_HISTORY = 256
"""Fewest micro batches for which findings stay in the store."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoaderRanks:
    """Where a process stands, as far as its data goes."""

    dp_rank: int = 0
    dp_size: int = 1
    vision_rank: int = 0
    """Rank among those that share a replica's tiles (TP x CP)."""
    vision_size: int = 1
    stage: int = 0
    """Pipeline stage; only stage 0 decodes tiles."""
    num_stages: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether the replica is this process."""
        return self.vision_size * self.num_stages == 1

    @property
    def leads_replica(self) -> bool:
        """Whether this process speaks for its replica."""
        return self.vision_rank == 0 and self.stage == 0

    @classmethod
    def of(cls, groups: Any) -> LoaderRanks:
        """The ranks of a ParallelGroups; a LoaderRanks stays as it is."""
        if isinstance(groups, cls):
            return groups
        return cls(
            groups.dp_rank, groups.dp_size, groups.vision_rank, groups.vision_size, groups.pp_rank, groups.pp_size
        )


class Loader(Iterator[LocalBatch]):
    """Micro batches of one rank, endless. Close it, or let it be collected, to end its workers."""

    def __init__(
        self,
        config: Config,
        ranks: LoaderRanks,
        catalog: Catalog,
        template: ChatTemplate,
        stream: SequenceStream,
        agreement: ReplicaFindings,
        start_sequence: int,
        end_sequence: int | None = None,
    ):
        """See build_loader. Sequences from `end_sequence` on are empty: batches of padding."""
        self.config, self.ranks, self.catalog, self.stream = config, ranks, catalog, stream
        self._template, self._agreement = template, agreement
        self._start, self._end = start_sequence, end_sequence
        self._quarantine = QuarantineFile(Path(config.output) / FILE_NAME) if ranks.leads_replica else None
        self._source = _start_reading(config, catalog, template)
        self._pool = TilePool()
        self._closer = weakref.finalize(self, self._source.close)
        self._ahead = max(1, 2 * config.data.num_workers)
        self._under_way: collections.deque[MicroBatch] = collections.deque()
        self._next = 0
        self._counts: OutcomeCounts = collections.Counter()
        self._planned = PlannedSamples(catalog, stream, start_sequence)
        step = config.training.global_batch_size if end_sequence is None else 0
        self._round = max(step, ranks.dp_size * config.training.micro_batch_size)
        self._division = StepDivision(catalog, stream, WorkModel.of(config), config.data.isolate_documents)
        self._shares: dict[int, list[int]] = {}
        if ranks.leads_replica and ranks.dp_rank == 0:
            self._report_quarantined()
            self._report_missing()

    def __next__(self) -> LocalBatch:
        while len(self._under_way) < self._ahead:
            number = self._next + len(self._under_way)
            self._under_way.append(self._begin(number * (SPARES + 1), self._numbers(number)))
        micro_batch = self._under_way.popleft()
        results, findings = self._finish(micro_batch)
        tries = [(micro_batch, findings)]
        for spare in range(1, SPARES + 1):
            left = {micro_batch.sequences[i] for i in range(len(micro_batch.requests)) if i not in findings}
            if len(left) == len(micro_batch.numbers) or self._end is not None:
                break
            # A later one stands in for a sequence of which nothing is left, the same at every layout, and comes again
            # in its turn.
            planned = enumerate(self._numbers(self._next))
            numbers = [micro_batch.numbers[i] if i in left else number + spare for i, number in planned]
            micro_batch = self._begin(micro_batch.task + 1, numbers)
            results, findings = self._finish(micro_batch)
            tries.append((micro_batch, findings))
        self._next += 1
        if self.ranks.leads_replica:
            self._counts.update(count_outcomes(tries))
        return self._assemble(micro_batch, results, findings)

    @property
    def consumed_sequences(self) -> int:
        """Where another loader would go on after a whole step: sequences that all replicas have taken."""
        return self._start + self._next * self.ranks.dp_size * self.config.training.micro_batch_size

    def outcome_counts(self) -> OutcomeCounts:
        """What became of the samples that this loader's replica took, after a whole step; that of all replicas together
        is the sum of all processes' tallies. The first replica alone counts what the plan took.
        """
        if self.ranks.leads_replica and self.ranks.dp_rank == 0:
            return self._counts + self._planned.counts_up_to(self.consumed_sequences)
        return self._counts

    def close(self) -> None:
        """Ends the workers."""
        self._closer()

    @property
    def data_hash(self) -> str:
        """Tells whether this loader gives the same sequences as another one."""
        taken, config = self.catalog.taken, self.config
        return plan_name(taken, self.catalog.lengths[taken], config.data.sequence_length, config.seed, 0)

    def summary(self) -> dict[str, Any]:
        """Figures of the data: samples, those set aside by reason, files that are not there, fill of the packed
        sequences. Packs one epoch.
        """
        files, plan = self.catalog.files, plan_epoch(self.catalog, self.config, 0)
        return {
            "samples": sum(file.num_samples for file in files),
            "taken": len(self.catalog.taken),
            "quarantined": count_reasons(self.catalog.quarantined),
            "missing_files": count_missing(self.catalog.missing),
            "resampled": sum(
                int((file.measured.frame_limits < self.config.data.max_num_frames).sum()) for file in files
            ),
            "sequences_per_epoch": plan.num_sequences,
            "fill": plan.fill,
        }

    def _numbers(self, micro_batch: int) -> list[int]:
        """The sequences of the stream that a micro batch, counted since the start, consists of."""
        size = self.config.training.micro_batch_size
        number, turn = divmod(micro_batch, self._round // (self.ranks.dp_size * size))
        return self._share(number)[turn * size : (turn + 1) * size]

    def _share(self, number: int) -> list[int]:
        """The sequences of a round, which is a step in training, that this replica takes."""
        if number not in self._shares:
            first = self._start + number * self._round
            sequences = np.arange(first, first + self._round)
            if self.ranks.dp_size > 1 and self._end is None:
                replicas = self._division.replicas(sequences, self.ranks.dp_size)
                sequences = sequences[replicas == self.ranks.dp_rank]
            else:
                micro_batches = sequences.reshape(-1, self.ranks.dp_size, self.config.training.micro_batch_size)
                sequences = micro_batches[:, self.ranks.dp_rank].ravel()
            # Micro batches are begun ahead of the one that is asked for, never far behind it.
            self._shares = {key: share for key, share in self._shares.items() if key >= number - 1}
            self._shares[number] = sequences.tolist()
        return self._shares[number]

    def _begin(self, task: int, numbers: list[int]) -> MicroBatch:
        """Has the documents of these sequences read."""
        micro_batch = self._plan(task, numbers)
        self._source.submit(micro_batch.task, micro_batch.requests)
        return micro_batch

    def _finish(self, micro_batch: MicroBatch) -> tuple[list[Document | SampleError], Findings]:
        """What was read, and the documents that no rank of the replica can use."""
        results = self._source.result(micro_batch.task)
        return results, self._agree(micro_batch, results)

    def _plan(self, task: int, numbers: list[int]) -> MicroBatch:
        """The documents of a micro batch of these sequences, and who decodes their tiles: from counts alone."""
        requests: list[DocumentRequest] = []
        sequences: list[int] = []
        for position, sequence in enumerate(numbers):
            if self._end is None or sequence < self._end:
                documents = [self.catalog.request(sample) for sample in self.stream.sequence(sequence)]
                requests += documents
                sequences += [position] * len(documents)
        owners = owners_of_tiles(requests, self.ranks.vision_size)
        if self.ranks.stage == 0:
            requests = [_wanting(request, mine == self.ranks.vision_rank) for request, mine in zip(requests, owners)]
        return MicroBatch(task, numbers, requests, sequences, owners)

    def _agree(self, micro_batch: MicroBatch, results: list[Document | SampleError]) -> Findings:
        own = {position: result for position, result in enumerate(results) if isinstance(result, SampleError)}
        deciders = np.unique(np.concatenate([*micro_batch.owners, np.zeros(0, np.int64)])).tolist()
        findings = self._agreement.agree(micro_batch.task, own, deciders)
        for position, error in findings.items():
            request = micro_batch.requests[position]
            entry = QuarantinedSample.because(error, request.source, request.path, request.place.line)
            if self._quarantine is not None and self._quarantine.add([entry]):
                logger.warning("%s is left out: %s", request.name, error.detail)
        return findings

    def _assemble(
        self, micro_batch: MicroBatch, results: list[Document | SampleError], findings: Findings
    ) -> LocalBatch:
        placed = []
        for position, result in enumerate(results):
            if position in findings or isinstance(result, SampleError):
                continue
            request, owners = micro_batch.requests[position], micro_batch.owners[position]
            sequence = micro_batch.sequences[position]
            placed.append(PlacedDocument(result.encoded, request.source, sequence, owners, result.pixels))
        data = self.config.data
        return assemble(
            placed,
            length=data.sequence_length * self.config.training.micro_batch_size,
            padding_id=self._template.tokenizer.padding,
            isolate=data.isolate_documents,
            image_size=self.config.model.vision.image_size,
            pool=self._pool,
        )

    def _report_quarantined(self) -> None:
        """Writes what the catalog leaves out to the quarantine file and says how much that is."""
        entries = self.catalog.quarantined
        if self._quarantine is not None and self._quarantine.add(entries):
            logger.warning(
                "%d samples are set aside: %s; see %s", len(entries), count_reasons(entries), self._quarantine.path
            )

    def _report_missing(self) -> None:
        """Says which data files data.allow_missing leaves out."""
        if self.catalog.missing:
            logger.warning("data.allow_missing leaves them out: %s", describe_missing(self.catalog.missing))


def build_loader(
    config: Config, groups: Any, start_sequence: int = 0, split: str = "train", store: Store | None = None
) -> Loader:
    """The loader of this process.

    groups: ParallelGroups, or LoaderRanks. start_sequence: sequences of the stream consumed so far, over all replicas.
    split: "train", or "validation/SOURCE" for the first training.validation_sequences sequences of a held-out source,
    after which batches hold padding alone. store: through which the ranks of a replica agree on broken documents;
    torch.distributed's own when absent. All ranks of a replica build their loaders in the same order.
    Raises DataError, TokenizerError (both are ValueErrors).
    """
    ranks = LoaderRanks.of(groups)
    sources = _sources(config, split)
    template = make_template(config)
    catalog = build_catalog(config, template, sources)
    end = None
    if split.startswith(VALIDATION):
        end = min(config.training.validation_sequences, plan_epoch(catalog, config, 0).num_sequences)
    return Loader(
        config,
        ranks,
        catalog,
        template,
        SequenceStream(lambda epoch: plan_epoch(catalog, config, epoch)),
        _make_agreement(config, ranks, split, store),
        start_sequence,
        end,
    )


def _sources(config: Config, split: str) -> dict[str, DatasetConfig]:
    if split == "train":
        return config.data.dataset
    source = split.removeprefix(VALIDATION)
    if not split.startswith(VALIDATION) or source not in config.data.validation:
        known = ["train", *(VALIDATION + name for name in config.data.validation)]
        raise DataError(f"there is no split {split!r}; known are {', '.join(known)}")
    return {source: config.data.validation[source]}


def _start_reading(config: Config, catalog: Catalog, template: ChatTemplate) -> InlineReader | WorkerPool:
    if config.data.num_workers == 0:
        return InlineReader(DocumentReader(template, catalog.settings))
    return WorkerPool(WorkerSetup.of(config, template), config.data.num_workers)


def _make_agreement(config: Config, ranks: LoaderRanks, split: str, store: Store | None) -> ReplicaFindings:
    if ranks.is_alone:
        return LocalFindings()
    if store is None:
        if not dist.is_initialized():
            raise RuntimeError("a replica of several processes needs torch.distributed, or a store, to agree through")
        store = dist.distributed_c10d._get_default_store()
    training = config.training
    step = training.global_batch_size // (training.micro_batch_size * ranks.dp_size)
    return SharedFindings(
        store,
        # Of this run alone: another one in the same processes may have another layout.
        name=f"longvita/data/{config.output}/{split}/{ranks.dp_rank}",
        process=f"{ranks.stage}/{ranks.vision_rank}",
        vision_rank=ranks.vision_rank if ranks.stage == 0 else None,
        history=max(2 * step, SHORTEST_HISTORY) * (SPARES + 1),
    )


def _wanting(request: DocumentRequest, mine: np.ndarray) -> DocumentRequest:
    """The request, for the tiles where `mine` is true."""
    return dataclasses.replace(request, wanted=tuple(np.flatnonzero(mine).tolist()))
