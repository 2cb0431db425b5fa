"""The data loader: the endless stream of micro batches of one rank.

Sequence k of the stream is the same at every layout. The replicas take the sequences step by step in order, so a
global batch is the same set at every layout, and a run resumes at any layout from the number of sequences consumed.
Within a step the sequences are divided among the replicas so that each has the same amount of work
(longvita.data.packing.balance).
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed as dist

from longvita.config.schema import Config, DatasetConfig
from longvita.data.audit.sample_accounting import OutcomeCounts, PlannedSamples, count_outcomes, count_replaced_frames
from longvita.data.batch import LocalBatch
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentReader, DocumentRequest
from longvita.data.errors import DataError, SampleError
from longvita.data.loading.assemble import assemble
from longvita.data.loading.broken_documents import Findings, SharedFindings
from longvita.data.loading.micro_batch import MicroBatch, ReadMicroBatch, owners_of_tiles
from longvita.data.loading.tile_memory import TilePool
from longvita.data.loading.worker import WorkerSetup
from longvita.data.loading.worker_pool import InlineReader, WorkerPool
from longvita.data.mix.catalog import Catalog, make_template
from longvita.data.mix.missing_files import describe_missing
from longvita.data.mix.quarantine_limit import build_checked_catalog
from longvita.data.packing.balance import StepDivision, WorkModel
from longvita.data.packing.packer import SequenceStream
from longvita.data.packing.plan_cache import plan_epoch, plan_name
from longvita.data.packing.replica_schedule import ReplicaSchedule
from longvita.data.quarantine import FILE_NAME, QuarantinedSample, QuarantineFile, count_reasons

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups

VALIDATION = "validation/"
"""Prefix of the split names of held-out sources."""
MAX_SUBSTITUTES = 3
"""Sequences tried in place of one in which every document turned out broken."""
MIN_HISTORY = 256
"""Fewest micro batches for which findings stay in the store."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoaderRanks:
    """The ranks of a process that decide which data it loads."""

    dp_rank: int = 0
    dp_size: int = 1
    vision_rank: int = 0
    """Rank among those that share a replica's tiles (TP x CP)."""
    vision_size: int = 1
    stage: int = 0
    """Pipeline stage; only stage 0 decodes tiles."""
    num_stages: int = 1

    @property
    def leads_replica(self) -> bool:
        """Whether this process counts and reports for its replica."""
        return self.vision_rank == 0 and self.stage == 0

    @property
    def leads_run(self) -> bool:
        """Whether this process reports for all replicas."""
        return self.leads_replica and self.dp_rank == 0

    @classmethod
    def from_groups(cls, groups: ParallelGroups) -> LoaderRanks:
        """Return the ranks of this process in its process groups."""
        return cls(
            groups.dp_rank, groups.dp_size, groups.vision_rank, groups.vision_size, groups.pp_rank, groups.pp_size
        )


class Loader(Iterator[LocalBatch]):
    """Micro batches of one rank, endless. Its workers end when it is closed or collected."""

    def __init__(
        self,
        config: Config,
        ranks: LoaderRanks,
        catalog: Catalog,
        template: ChatTemplate,
        findings: SharedFindings | None,
        start_sequence: int,
        end_sequence: int | None = None,
    ):
        """Start reading; see build_loader. Sequences from `end_sequence` on are empty: batches of padding."""
        self.config, self.ranks, self.catalog = config, ranks, catalog
        self.stream = SequenceStream(lambda epoch: plan_epoch(catalog, config, epoch))
        self._template, self._findings = template, findings
        self._start_sequence, self._end_sequence = start_sequence, end_sequence
        self._schedule = _make_schedule(config, ranks, catalog, self.stream, start_sequence, end_sequence is None)
        self._quarantine = QuarantineFile(Path(config.output) / FILE_NAME) if ranks.leads_replica else None
        self._reader: InlineReader | WorkerPool
        if config.data.num_workers:
            self._reader = WorkerPool(WorkerSetup.of(config, template), config.data.num_workers)
        else:
            self._reader = InlineReader(DocumentReader(template, catalog.settings))
        self._closer = weakref.finalize(self, self._reader.close)
        self._pool = TilePool()
        self._max_ahead = max(1, 2 * config.data.num_workers)
        self._ahead: collections.deque[MicroBatch] = collections.deque()
        self._num_taken = 0
        self._counts = OutcomeCounts()
        self._planned = PlannedSamples(catalog, self.stream, start_sequence)
        if ranks.leads_run:
            self._report_quarantined()
            if catalog.missing:
                logger.warning("data.allow_missing leaves these files out: %s", describe_missing(catalog.missing))

    def __next__(self) -> LocalBatch:
        self._read_ahead()
        attempts = [self._finish(self._ahead.popleft())]
        while attempts[-1].empty_sequences and len(attempts) <= MAX_SUBSTITUTES and self._end_sequence is None:
            attempts.append(self._substitute_empty_sequences(attempts))
        self._num_taken += 1
        if self.ranks.leads_replica:
            self._counts.update(count_outcomes(attempts))
        self._counts.update(count_replaced_frames(attempts[-1]))  # Each process decodes its own frames.
        data = self.config.data
        return assemble(
            list(attempts[-1].usable_documents()),
            length=data.sequence_length * self.config.training.micro_batch_size,
            padding_id=self._template.tokenizer.padding,
            isolate=data.isolate_documents,
            image_size=self.config.model.vision.image_size,
            pool=self._pool,
        )

    @property
    def consumed_sequences(self) -> int:
        """Sequences that all replicas have consumed, valid after a complete step: where another loader would resume."""
        return self._start_sequence + self._num_taken * self.ranks.dp_size * self.config.training.micro_batch_size

    def samples_of(self, first: int, count: int) -> dict[str, list[int]]:
        """Lines of the samples planned in sequences [first, first + count), by data file."""
        lines: dict[str, list[int]] = {}
        for number in range(first, first + count):
            for sample in self.stream.sequence(number):
                request = self.catalog.request(sample)
                lines.setdefault(request.path, []).append(request.place.line)
        return lines

    def outcome_counts(self) -> OutcomeCounts:
        """Count what became of the samples of this replica, valid after a complete step.

        The counts of a run are the sum over all processes. Only those of the first replica include the planned samples.
        """
        if self.ranks.leads_run:
            return self._counts + self._planned.counts_up_to(self.consumed_sequences)
        return self._counts

    def close(self) -> None:
        """End the workers."""
        self._closer()

    @property
    def data_hash(self) -> str:
        """A hash that is equal for loaders that give the same sequences."""
        selected, config = self.catalog.selected, self.config
        return plan_name(selected, self.catalog.lengths[selected], config.data.sequence_length, config.seed, 0)

    def _read_ahead(self) -> None:
        """Start to read the next micro batches until the workers have enough of them."""
        while len(self._ahead) < self._max_ahead:
            number = self._num_taken + len(self._ahead)
            self._ahead.append(self._start(number * (MAX_SUBSTITUTES + 1), self._schedule.sequences(number)))

    def _substitute_empty_sequences(self, attempts: list[ReadMicroBatch]) -> ReadMicroBatch:
        """Read the micro batch again with a later sequence for each that turned out empty.

        The substitute is the same at every layout. It comes again in its own turn.
        """
        planned, last = attempts[0].micro_batch.numbers, attempts[-1]
        numbers = [
            planned[position] + len(attempts) if position in last.empty_sequences else number
            for position, number in enumerate(last.micro_batch.numbers)
        ]
        return self._finish(self._start(last.micro_batch.task + 1, numbers))

    def _start(self, task: int, numbers: list[int]) -> MicroBatch:
        """Start to read the documents of these sequences. Each rank decodes its own tiles, which follow from counts."""
        requests: list[DocumentRequest] = []
        sequences: list[int] = []
        for position, number in enumerate(numbers):
            if self._end_sequence is None or number < self._end_sequence:
                documents = [self.catalog.request(sample) for sample in self.stream.sequence(number)]
                requests += documents
                sequences += [position] * len(documents)
        owners = owners_of_tiles(requests, self.ranks.vision_size)
        if self.ranks.stage == 0:
            own = [tuple(np.flatnonzero(ranks == self.ranks.vision_rank).tolist()) for ranks in owners]
            requests = [dataclasses.replace(request, wanted=tiles) for request, tiles in zip(requests, own)]
        self._reader.submit(task, requests)
        return MicroBatch(task, numbers, requests, sequences, owners)

    def _finish(self, micro_batch: MicroBatch) -> ReadMicroBatch:
        """Wait for the documents of a micro batch, and for the other ranks' findings about broken ones."""
        results = self._reader.result(micro_batch.task)
        own = {position: result for position, result in enumerate(results) if isinstance(result, SampleError)}
        # A replica of one process has no others to ask.
        broken = self._findings.collect(micro_batch.task, own, micro_batch.decoders) if self._findings else own
        self._write_to_quarantine(micro_batch, broken)
        return ReadMicroBatch(micro_batch, results, broken)

    def _write_to_quarantine(self, micro_batch: MicroBatch, broken: Findings) -> None:
        for position, error in broken.items():
            request = micro_batch.requests[position]
            entry = QuarantinedSample.because(error, request.source, request.path, request.place.line)
            if self._quarantine is not None and self._quarantine.add([entry]):
                logger.warning("%s is quarantined: %s", request.name, error.detail)

    def _report_quarantined(self) -> None:
        """Write the samples that the catalog leaves out to the quarantine file and log how many they are."""
        entries = self.catalog.quarantined
        if self._quarantine is not None and self._quarantine.add(entries):
            logger.warning(
                "%d samples are quarantined: %s; see %s", len(entries), count_reasons(entries), self._quarantine.path
            )


def build_loader(
    config: Config, ranks: LoaderRanks, start_sequence: int = 0, split: str = "train", store: dist.Store | None = None
) -> Loader:
    """Build the loader of this process.

    start_sequence: sequences of the stream consumed so far, over all replicas. split: "train", or "validation/SOURCE"
    for the first training.validation_sequences sequences of a held-out source, after which batches hold padding alone.
    store: where the ranks of a replica exchange which documents are broken; torch.distributed's own when absent. All
    ranks of a replica build their loaders in the same order.

    Raises DataError, TokenizerError (both are ValueErrors).
    """
    sources = _sources(config, split)
    template = make_template(config)
    catalog = build_checked_catalog(config, template, sources)
    end = None
    if split.startswith(VALIDATION):
        end = min(config.training.validation_sequences, plan_epoch(catalog, config, 0).num_sequences)
    findings = _make_findings(config, ranks, split, store)
    return Loader(config, ranks, catalog, template, findings, start_sequence, end)


def _sources(config: Config, split: str) -> dict[str, DatasetConfig]:
    if split == "train":
        return config.data.dataset
    source = split.removeprefix(VALIDATION)
    if not split.startswith(VALIDATION) or source not in config.data.validation:
        known = ["train", *(VALIDATION + name for name in config.data.validation)]
        raise DataError(f"there is no split {split!r}; known are {', '.join(known)}")
    return {source: config.data.validation[source]}


def _make_schedule(
    config: Config, ranks: LoaderRanks, catalog: Catalog, stream: SequenceStream, start: int, is_training: bool
) -> ReplicaSchedule:
    """A round is a step in training, and one micro batch of each replica in validation."""
    size = config.training.micro_batch_size
    round_size, division = ranks.dp_size * size, None
    if is_training:
        round_size = max(round_size, config.training.global_batch_size)
        division = StepDivision(catalog, stream, WorkModel.of(config), config.data.isolate_documents)
    return ReplicaSchedule(ranks.dp_rank, ranks.dp_size, size, round_size, start, division)


def _make_findings(config: Config, ranks: LoaderRanks, split: str, store: dist.Store | None) -> SharedFindings | None:
    if ranks.vision_size * ranks.num_stages == 1:
        return None
    if store is None:
        if not dist.is_initialized():
            raise RuntimeError("a replica of several processes needs torch.distributed, or a store, for its findings")
        store = dist.distributed_c10d._get_default_store()
    step = config.training.global_batch_size // (config.training.micro_batch_size * ranks.dp_size)
    return SharedFindings(
        store,
        # The output folder sets this run apart: another one in the same processes may have another layout.
        name=f"longvita/data/{config.output}/{split}/{ranks.dp_rank}",
        process=f"{ranks.stage}/{ranks.vision_rank}",
        vision_rank=ranks.vision_rank if ranks.stage == 0 else None,
        history=max(2 * step, MIN_HISTORY) * (MAX_SUBSTITUTES + 1),
    )
