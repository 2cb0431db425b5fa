"""The processes that read documents ahead of the trainer, and a reader without processes.

A thread watches the workers: it hands out tasks, receives results, and replaces a worker that ended, gives no sign of
life, or takes too long for one document. That document is unusable, except after the first end of a worker at it, which
may have another cause (a kill, the kernel short of memory). Another worker reads the rest of the task. The caller
bounds memory by the number of tasks that it submits.

Not torch's DataLoader, which cannot replace a worker that crashes or hangs, and was measured at half the speed
(tools/benchmark/data_media.py, loader_over_naive).
"""

from __future__ import annotations

import collections
import contextlib
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate, EncodedSample
from longvita.data.document import Document, DocumentReader, DocumentRequest
from longvita.data.errors import SampleError
from longvita.data.loading.tile_memory import SharedBlock, TilePool
from longvita.data.loading.worker import WorkerSetup, WorkItem

GRACE_SECONDS = 15.0
"""Added to the time limit of one frame before a worker without a sign of life is replaced, seconds."""
TURN_SECONDS = 1.0
"""Longest wait for messages between two checks of the time limits, seconds."""
CLOSE_SECONDS = 5.0
"""Time for workers to end by themselves before they are killed, seconds."""
SUSPENDED_SECONDS = 3.0
"""If a turn of the watching thread takes this much longer than its wait, the job was suspended (scontrol, Ctrl-Z)."""
MAX_FAILED_STARTS = 3
"""Consecutive workers that may end without having read a document before that is an error."""

Result = Document | SampleError


class InlineReader:
    """Reads documents in the training process, when their results are requested."""

    def __init__(self, reader: DocumentReader):
        self._reader = reader
        self._tasks: dict[int, Sequence[DocumentRequest]] = {}

    def submit(self, task: int, requests: Sequence[DocumentRequest]) -> None:
        """Submit a task."""
        self._tasks[task] = requests

    def result(self, task: int) -> list[Result]:
        """Read the documents of a task, or why one cannot be used, in the order of its requests."""
        results: list[Result] = []
        for request in self._tasks.pop(task):
            try:
                results.append(self._reader.read(request))
            except SampleError as error:
                results.append(error)
        return results

    def close(self) -> None:
        """Do nothing."""


class _Task:
    """The documents of one call of `submit`, and the memory for their tiles."""

    def __init__(self, requests: Sequence[DocumentRequest], image_size: int, pool: TilePool):
        firsts = np.cumsum([0, *(len(request.wanted) for request in requests)]).tolist()
        self.work = [WorkItem(number, request, first) for number, (request, first) in enumerate(zip(requests, firsts))]
        shape = (firsts[-1], image_size, image_size, 3)
        block = pool.take(math.prod(shape)) if firsts[-1] else None
        self.tiles = pool.array(shape, np.uint8, block)
        self.block = block if isinstance(block, SharedBlock) else None
        self.results: dict[int, Result] = {}
        self.tried: set[int] = set()
        """Documents at which a worker has ended once."""

    def add(self, number: int, result: EncodedSample | SampleError, replaced_frames: int = 0) -> None:
        """Store the outcome of a document; its tiles are already in memory."""
        if isinstance(result, SampleError):
            self.results[number] = result
        else:
            self.results[number] = Document(result, self.work[number].select(self.tiles), replaced_frames)

    def send(self, connection: Connection, work: list[WorkItem]) -> None:
        """Send some of the documents to a worker to read."""
        connection.send((len(self.tiles), self.block.size if self.block else 0, work))
        if self.block is not None:
            self.block.send(connection)


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    last_sign: float
    ready: bool = False
    task: int | None = None
    work: list[WorkItem] = field(default_factory=list)
    """Documents of its task that it has not finished."""
    begun: int | None = None
    """Number of the document that it is reading."""
    begun_at: float = 0.0
    """When it started that document, by time.monotonic."""


def open_pool(config: Config, template: ChatTemplate) -> contextlib.closing[WorkerPool]:
    """Start the workers of a config, at least one, for a command that reads single samples."""
    return contextlib.closing(WorkerPool(WorkerSetup.of(config, template), max(config.data.num_workers, 1)))


class WorkerPool:
    """Reads documents in `num_workers` processes."""

    def __init__(self, setup: WorkerSetup, num_workers: int):
        self._setup = setup
        self._silence = setup.settings.stall_seconds + GRACE_SECONDS
        self._pool = TilePool(SharedBlock)
        self._changed = threading.Condition()
        self._tasks: dict[int, _Task] = {}
        self._waiting: collections.deque[tuple[int, list[WorkItem]]] = collections.deque()
        self._error: str | None = None
        self._failed_starts = 0
        self._closing = False
        self._wake_in, self._wake_out = multiprocessing.Pipe(duplex=False)
        self._workers = [self._start() for _ in range(num_workers)]
        self._thread = threading.Thread(target=self._watch, name="data workers", daemon=True)
        self._thread.start()

    def submit(self, task: int, requests: Sequence[DocumentRequest]) -> None:
        """Submit a task; it starts as soon as a worker is free."""
        with self._changed:
            entry = self._tasks[task] = _Task(requests, self._setup.settings.image_size, self._pool)
            if requests:
                self._waiting.append((task, entry.work))
        self._wake_out.send(None)

    def result(self, task: int) -> list[Result]:
        """Wait for the documents of a task, or why one cannot be used, in the order of its requests.

        Raises RuntimeError if the workers fail.
        """
        with self._changed:
            entry = self._tasks[task]
            self._changed.wait_for(lambda: self._error is not None or len(entry.results) == len(entry.work))
            if self._error is not None:
                raise RuntimeError(self._error)
            del self._tasks[task]
        return [entry.results[number] for number in range(len(entry.work))]

    def close(self) -> None:
        """End the workers and the thread. May be called more than once."""
        if self._closing:
            return
        self._closing = True
        self._wake_out.send(None)
        self._thread.join()
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._wake_in.close()
        self._wake_out.close()

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        call = f"main({theirs.fileno()}, {os.getpid()})"
        code = f"import sys; sys.path[:] = {sys.path!r}; from longvita.data.loading.worker import main; {call}"
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        return _Worker(process, ours, time.monotonic())

    def _watch(self) -> None:
        """Run the thread until the pool is closed or fails."""
        try:
            turned = time.monotonic()
            while not self._closing and self._error is None:
                connections: list[Any] = [self._wake_in, *(worker.connection for worker in self._workers)]
                readable = set(wait(connections, timeout=TURN_SECONDS))
                turned = self._forgive_suspension(turned)
                if self._wake_in in readable:
                    self._wake_in.recv()
                for position, worker in enumerate(self._workers):
                    if worker.connection in readable:
                        self._receive(position)
                    elif worker.task is not None and time.monotonic() - worker.last_sign > self._silence:
                        self._replace(position, f"gave no sign of life for {self._silence:.0f} s")
                    self._replace_if_slow(position)
                self._hand_out()
        except Exception as error:
            self._fail(f"the thread that watches the data workers ended: {type(error).__name__}: {error}")
            raise

    def _forgive_suspension(self, turned: float) -> float:
        """Do not count time in which the job was suspended against the workers; return the time now.

        turned: time of the previous call.
        """
        now = time.monotonic()
        lost = now - turned - TURN_SECONDS
        if lost > SUSPENDED_SECONDS:
            for worker in self._workers:
                worker.last_sign += lost
                worker.begun_at += lost
        return now

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.task is None and self._waiting:
                worker.task, worker.work = self._waiting.popleft()
                worker.last_sign = time.monotonic()
                # A worker that has ended is replaced when its closed connection is read.
                with contextlib.suppress(OSError):
                    self._tasks[worker.task].send(worker.connection, worker.work)

    def _receive(self, position: int) -> None:
        worker = self._workers[position]
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(position, "ended", blamed=False)
            return
        worker.last_sign = time.monotonic()
        if kind == "hello":
            worker.connection.send(self._setup)
        elif kind == "ready":
            worker.ready = True
        elif kind == "begin":
            worker.begun, worker.begun_at = content[0], time.monotonic()
        elif kind in ("document", "unusable"):
            self._finish_document(worker, *content)
        elif kind == "done":
            worker.task = None
        elif kind == "error":
            self._fail(f"a data worker failed:\n{content[0]}")

    def _finish_document(
        self, worker: _Worker, number: int, result: EncodedSample | SampleError, replaced_frames: int = 0
    ) -> None:
        self._failed_starts = 0
        worker.begun = None
        worker.work = [item for item in worker.work if item.number != number]
        with self._changed:
            # A task without an entry has been collected already.
            if worker.task in self._tasks:
                self._tasks[worker.task].add(number, result, replaced_frames)
            self._changed.notify_all()

    def _replace_if_slow(self, position: int) -> None:
        """Replace a worker that takes too long for one document, even if it gives signs of life."""
        worker, limit = self._workers[position], self._setup.sample_seconds
        if worker.begun is not None and time.monotonic() - worker.begun_at > limit:
            self._replace(position, f"took longer than {limit:.0f} s (data.sample_timeout_seconds)")

    def _replace(self, position: int, what: str, blamed: bool = True) -> None:
        """Start another worker for one that ended or hangs; `blamed`: the document that it was reading is unusable."""
        worker = self._workers[position]
        worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        decoded = next((item for item in worker.work if item.number == worker.begun and item.request.wanted), None)
        if decoded is None:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                end = f"the last one {what}, exit code {code}"
                self._fail(f"data workers end repeatedly ({end}); fix: see their output")
                return
        elif blamed or self._has_been_tried(worker.task, decoded.number):
            self._finish_document(worker, decoded.number, decoded.request.decode_error(f"{what} (exit code {code})"))
        if worker.task is not None:
            # One by one, for several workers: if one document hangs, others may too, and they need not wait in turn.
            self._waiting.extendleft((worker.task, [item]) for item in reversed(worker.work))
        self._workers[position] = self._start()

    def _has_been_tried(self, task: int | None, number: int) -> bool:
        """Return whether a worker ended at this document before, and note that one has now."""
        entry = self._tasks.get(task) if task is not None else None
        if entry is None or number in entry.tried:
            return True
        entry.tried.add(number)
        return False

    def _fail(self, message: str) -> None:
        with self._changed:
            self._error = message
            self._changed.notify_all()
