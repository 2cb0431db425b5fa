"""Which documents of a micro batch are broken, exchanged among the ranks of a model replica.

A rank decodes only its own tiles, so it alone sees that a frame is damaged. Yet every rank of the replica, later
pipeline stages included, must leave the same documents out of the batch. A collective inside the data iterator would
hang: with pipeline parallel a later stage asks for a micro batch only after the first stage has sent it activations,
so the first stage would wait for ranks that wait for it. Here the ranks that decode write their findings to the store
of torch.distributed and never wait for the others, which read them. A rank thus waits only for decoders that have the
same micro batch before them, whatever the schedule.

Ranks without a tile in a micro batch write nothing. A replica of one process needs no store.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Sequence

from torch.distributed import Store

from longvita.data.errors import Reason, SampleError

TIMEOUT_SECONDS = 1800.0
"""Longest wait for another rank's findings, seconds."""
MAX_PAUSE_SECONDS = 0.02
"""Longest pause between two looks at the store, seconds."""

Findings = dict[int, SampleError]
"""Broken documents: number in the micro batch -> why it could not be decoded."""


class SharedFindings:
    """The findings of a replica of several processes, exchanged through a store that all of them reach."""

    def __init__(self, store: Store, name: str, process: str, vision_rank: int | None, history: int):
        """Start with no findings.

        name: name of the loader, identical on all ranks of the replica and different for every loader of a run.
        process: name of this process, different for each. vision_rank: rank of this process among those that decode,
        None on later stages. history: micro batches after which no rank of the replica asks for a finding again.
        """
        # Ranks build and restart their loaders in the same order, so each counts the same number here. It separates
        # the keys from those of an earlier loader of this name.
        generation = store.add(f"{name}/generation/{process}", 1)
        self._store, self._prefix = store, f"{name}/{generation}"
        self._vision_rank, self._history = vision_rank, history
        self._written: collections.deque[int] = collections.deque()

    def collect(self, micro_batch: int, own: Findings, decoders: Sequence[int]) -> Findings:
        """Return the findings of all `decoders` (vision ranks) on one micro batch, this rank's `own` included.

        Raises TimeoutError, with the rank that is waited for, if its findings do not come.
        """
        if self._vision_rank is not None and self._vision_rank in decoders:
            self._write(micro_batch, self._vision_rank, own)
        findings = dict(own)
        for rank in decoders:
            if rank != self._vision_rank:
                findings.update(self._read(micro_batch, rank))
        return dict(sorted(findings.items()))

    def _write(self, micro_batch: int, rank: int, own: Findings) -> None:
        """Write this rank's findings and delete those that are too old to be read."""
        text = json.dumps([[document, error.reason, error.detail] for document, error in own.items()])
        self._store.set(self._key(micro_batch, rank), text)
        self._written.append(micro_batch)
        while self._written[0] <= micro_batch - self._history:
            self._store.delete_key(self._key(self._written.popleft(), rank))

    def _read(self, micro_batch: int, rank: int) -> Findings:
        key = self._key(micro_batch, rank)
        deadline, pause = time.monotonic() + TIMEOUT_SECONDS, 0.0005
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"vision rank {rank} has not written its findings on micro batch {micro_batch} for "
                    f"{TIMEOUT_SECONDS:.0f} s; fix: check whether that process still runs"
                )
            time.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)
        entries = json.loads(self._store.get(key))
        return {document: SampleError(Reason(reason), detail) for document, reason, detail in entries}

    def _key(self, micro_batch: int, rank: int) -> str:
        return f"{self._prefix}/{micro_batch}/{rank}"
