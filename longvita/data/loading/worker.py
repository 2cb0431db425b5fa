"""A data worker: a process that reads documents and decodes their tiles for one training process.

It is started as a program of its own, not forked, so it inherits no thread, no device and no lock, and it does without
torch. It ends when the training process closes the connection or dies.

Messages, worker to trainer: ("hello",), ("ready",), ("begin", number), ("alive",), ("document", number, EncodedSample),
("unusable", number, SampleError), ("done",), ("error", traceback). Trainer to worker: WorkerSetup after "hello", then
tasks, which are (number of tiles, bytes of the block for them, list of WorkItems), each followed by that SharedBlock if
it has tiles.
"""

from __future__ import annotations

import ctypes
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np

from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentReader, DocumentRequest, media_settings
from longvita.data.errors import SampleError, tell
from longvita.data.loading.tile_memory import SharedBlock
from longvita.data.media.item import MediaSettings
from longvita.data.tokenizer import LongVITATokenizer
from longvita.process_limits import limit_memory
from longvita.processes import die_with_parent

if TYPE_CHECKING:
    from longvita.config.schema import Config

BEAT_SECONDS = 1.0
"""Shortest time between two signs of life, seconds."""
KEPT_MEMORY = 256 << 20
"""Freed memory that a worker keeps for the next picture, bytes: what is new to a process must be cleared first."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST_IN_HEAP = -1, -3, 32 << 20
"""Parameters of glibc's mallopt, and the largest value that the second may have, bytes."""


@dataclass(frozen=True)
class WorkItem:
    """A document of a task."""

    number: int
    """Its place in the task."""
    request: DocumentRequest
    first_tile: int
    """Its first tile among those of the task."""

    def part_of(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 [k, S, S, 3]: its own of the task's tiles."""
        return tiles[self.first_tile : self.first_tile + len(self.request.wanted)]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to read documents."""

    tokenizer: str
    """The tokenizer as JSON."""
    tokens_per_tile: int
    settings: MediaSettings
    sample_seconds: float = 600.0
    """Longest time that the tiles of one document may take, seconds."""
    memory_bytes: int = 4 << 30
    """Most memory that decoding may take beside what the worker has at its start, bytes."""

    @classmethod
    def of(cls, config: Config, template: ChatTemplate) -> WorkerSetup:
        """What the workers of a config's loader have."""
        return cls(
            template.tokenizer.to_json(),
            template.tokens_per_tile,
            media_settings(config),
            config.data.sample_timeout_seconds,
            config.data.decode_memory_bytes,
        )

    def reader(self) -> DocumentReader:
        """The reader that these settings describe."""
        template = ChatTemplate(LongVITATokenizer.from_json(self.tokenizer), self.tokens_per_tile)
        return DocumentReader(template, self.settings)


def main(descriptor: int, parent: int) -> None:
    """Serves tasks from the connection with this file descriptor until it closes, or process `parent` ends."""
    # The training process decides when to stop: a signal to the whole group reaches it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent)  # It may be in a decoder that never comes back to look at its connection.
    connection = Connection(descriptor)
    try:
        connection.send(("hello",))
        setup: WorkerSetup = connection.recv()
        reader = setup.reader()
        keep_freed_memory()
        limit_memory(KEPT_MEMORY + setup.memory_bytes)
        connection.send(("ready",))
        while True:
            _serve_task(connection, reader)
    except (EOFError, ConnectionError):
        return  # The training process is gone or does not need us any more.
    except Exception:
        connection.send(("error", traceback.format_exc()))
        raise


def keep_freed_memory() -> None:
    """Lets the C library keep what a picture took for the next one; others than glibc do as they like."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)


def _serve_task(connection: Connection, reader: DocumentReader) -> None:
    num_tiles, block_size, work = connection.recv()
    size = reader.settings.image_size
    tiles = np.zeros((0, size, size, 3), np.uint8)
    if num_tiles:
        block = SharedBlock.receive(connection, block_size)
        tiles = np.frombuffer(block.mapping, np.uint8, num_tiles * size * size * 3).reshape(-1, size, size, 3)
    for item in work:
        _serve(connection, reader, item, item.part_of(tiles))
    connection.send(("done",))


def _serve(connection: Connection, reader: DocumentReader, item: WorkItem, out: np.ndarray) -> None:
    connection.send(("begin", item.number))
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            connection.send(("alive",))

    try:
        document = reader.read(item.request, beat, out)
    except SampleError as error:
        connection.send(("unusable", item.number, SampleError(error.reason, error.detail)))
    except MemoryError as error:
        if not item.request.wanted:
            raise  # The other ranks, which decode it, would not hear of it.
        connection.send(("unusable", item.number, item.request.undecodable(f"gave up: {tell(error)}")))
    else:
        connection.send(("document", item.number, document.encoded))
