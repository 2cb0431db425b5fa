"""What the ranks of a model replica agree on: which documents of a micro batch could not be decoded.

A rank decodes only its own tiles, so it alone sees that a frame is damaged, yet every rank of the replica must leave
the same documents out of the batch, later pipeline stages included. A collective inside the data iterator would hang:
with pipeline parallel a later stage asks for a micro batch only after the first stage has sent it activations, so the
first stage would wait for ranks that wait for it. Here the ranks that decode write their findings to the store of
torch.distributed and never wait for those that do not; the others read them. What is waited for is a decoder that has
the same micro batch before it, whatever the schedule.

Ranks without a tile in a micro batch say nothing, and a replica of one process has no need of a store.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Sequence
from typing import Protocol

from longvita.data.errors import Reason, SampleError

TIMEOUT_SECONDS = 1800.0
"""Longest wait for another rank's findings, seconds."""
LONGEST_PAUSE_SECONDS = 0.02
"""Longest pause between two looks at the store, seconds."""

Findings = dict[int, SampleError]
"""Documents that could not be decoded: number in the micro batch -> why."""


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: str) -> None:
        """Writes a value."""

    def get(self, key: str) -> bytes:
        """Reads a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter; its new value."""

    def delete_key(self, key: str) -> bool:
        """Removes a key."""


class ReplicaFindings(Protocol):
    """How the ranks of a replica agree."""

    def agree(self, micro_batch: int, own: Findings, deciders: Sequence[int]) -> Findings:
        """The findings of all `deciders` (vision ranks) on one micro batch, this rank's `own` among them."""


class LocalFindings:
    """For a replica of one process."""

    def agree(self, micro_batch: int, own: Findings, deciders: Sequence[int]) -> Findings:
        """No other process has findings."""
        return own


class SharedFindings:
    """Through a store that all ranks of the replica share."""

    def __init__(self, store: Store, name: str, process: str, vision_rank: int | None, history: int):
        """name: of the loader, the same on all ranks of the replica and different for every loader of a run; process:
        tells this process from all others; vision_rank: this rank's among those that decode, None on later stages;
        history: micro batches after which no rank of the replica asks for a finding again.
        """
        # Ranks build and restart their loaders in the same order, so that each counts the same number here. It keeps
        # what an earlier loader of this name wrote apart.
        generation = store.add(f"{name}/generation/{process}", 1)
        self._store, self._prefix = store, f"{name}/{generation}"
        self._vision_rank, self._history = vision_rank, history
        self._written: collections.deque[int] = collections.deque()

    def agree(self, micro_batch: int, own: Findings, deciders: Sequence[int]) -> Findings:
        """See ReplicaFindings. Raises TimeoutError, naming the rank that is waited for."""
        if self._vision_rank is not None and self._vision_rank in deciders:
            self._store.set(self._key(micro_batch, self._vision_rank), _write(own))
            self._written.append(micro_batch)
            while self._written[0] <= micro_batch - self._history:
                self._store.delete_key(self._key(self._written.popleft(), self._vision_rank))
        findings = dict(own)
        for rank in deciders:
            if rank != self._vision_rank:
                findings.update(self._read(micro_batch, rank))
        return dict(sorted(findings.items()))

    def _read(self, micro_batch: int, rank: int) -> Findings:
        key = self._key(micro_batch, rank)
        deadline, pause = time.monotonic() + TIMEOUT_SECONDS, 0.0005
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"vision rank {rank} has said nothing of micro batch {micro_batch} for {TIMEOUT_SECONDS:.0f} s; "
                    "see whether that process still runs"
                )
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return _parse(self._store.get(key))

    def _key(self, micro_batch: int, rank: int) -> str:
        return f"{self._prefix}/{micro_batch}/{rank}"


def _write(findings: Findings) -> str:
    return json.dumps([[document, error.reason, error.detail] for document, error in findings.items()])


def _parse(value: bytes) -> Findings:
    return {document: SampleError(Reason(reason), detail) for document, reason, detail in json.loads(value)}
