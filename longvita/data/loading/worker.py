"""A data worker: a process that reads documents and decodes their tiles for one training process.

It is started as a new program, not forked, so it inherits no thread, no device and no lock, and it does not import
torch. It ends when the training process closes the connection or dies.

Messages, worker to trainer: ("hello",), ("ready",), ("begin", number), ("alive",), ("document", number, EncodedSample,
number of replaced frames), ("unusable", number, SampleError), ("done",), ("error", traceback). Trainer to worker:
WorkerSetup after "hello", then tasks, which are (number of tiles, bytes of the block for them, list of WorkItems), each
followed by that SharedBlock if it has tiles.
"""

from __future__ import annotations

import ctypes
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentReader, DocumentRequest, media_settings
from longvita.data.errors import SampleError, one_line
from longvita.data.loading.tile_memory import SharedBlock
from longvita.data.media.item import MediaSettings
from longvita.data.tokenizer import LongVITATokenizer
from longvita.process_limits import limit_memory
from longvita.processes import die_with_parent

BEAT_SECONDS = 1.0
"""Shortest time between two signs of life, seconds."""
KEPT_MEMORY = 256 << 20
"""Freed memory that a worker keeps for the next picture, bytes: the kernel must clear new memory first."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD = -1, -3, 32 << 20
"""Parameters of glibc's mallopt, and the largest valid value of the second, bytes."""


@dataclass(frozen=True)
class WorkItem:
    """A document of a task."""

    number: int
    """Its position in the task."""
    request: DocumentRequest
    first_tile: int
    """Its first tile among those of the task."""

    def select(self, tiles: np.ndarray) -> np.ndarray:
        """Select the tiles of this document, uint8 [k, S, S, 3], of those of the task."""
        return tiles[self.first_tile : self.first_tile + len(self.request.wanted)]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to read documents."""

    tokenizer: str
    """The tokenizer as JSON."""
    tokens_per_tile: int
    settings: MediaSettings
    sample_seconds: float = 600.0
    """Longest time to decode the tiles of one document, seconds."""
    memory_bytes: int = 4 << 30
    """Most memory for decoding, in addition to what the worker has at its start, bytes."""

    @classmethod
    def of(cls, config: Config, template: ChatTemplate) -> WorkerSetup:
        """Return the setup of the workers of a config's loader."""
        limits = config.data.sample_timeout_seconds, config.data.decode_memory_bytes
        return cls(template.tokenizer.to_json(), template.tokens_per_tile, media_settings(config), *limits)


def main(descriptor: int, parent: int) -> None:
    """Serve tasks from the connection with this file descriptor until it closes or process `parent` ends."""
    # The training process decides when to save and to stop: a signal to the process group reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(parent)  # A decoder that hangs never returns to its connection.
    connection = Connection(descriptor)
    try:
        connection.send(("hello",))
        setup: WorkerSetup = connection.recv()
        template = ChatTemplate(LongVITATokenizer.from_json(setup.tokenizer), setup.tokens_per_tile)
        reader = DocumentReader(template, setup.settings)
        keep_freed_memory()
        limit_memory(KEPT_MEMORY + setup.memory_bytes)
        connection.send(("ready",))
        while True:
            _serve_task(connection, reader)
    except (EOFError, ConnectionError):
        return  # The training process has ended or closed the connection.
    except Exception:
        connection.send(("error", traceback.format_exc()))
        raise


def keep_freed_memory() -> None:
    """Make glibc keep the memory of a picture for the next one; other C libraries are left alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)


def _serve_task(connection: Connection, reader: DocumentReader) -> None:
    num_tiles, block_size, work = connection.recv()
    size = reader.settings.image_size
    tiles = np.zeros((0, size, size, 3), np.uint8)
    if num_tiles:
        block = SharedBlock.receive(connection, block_size)
        tiles = np.frombuffer(block.mapping, np.uint8, num_tiles * size * size * 3).reshape(-1, size, size, 3)
    for item in work:
        _serve(connection, reader, item, item.select(tiles))
    connection.send(("done",))


def _serve(connection: Connection, reader: DocumentReader, item: WorkItem, out: np.ndarray) -> None:
    connection.send(("begin", item.number))
    last = time.monotonic()

    def heartbeat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            connection.send(("alive",))

    try:
        document = reader.read(item.request, heartbeat, out)
    except SampleError as error:
        connection.send(("unusable", item.number, SampleError(error.reason, error.detail)))
    except MemoryError as error:
        if not item.request.wanted:
            raise  # This rank decodes nothing of it, so the other ranks would not read its finding.
        connection.send(("unusable", item.number, item.request.decode_error(f"failed: {one_line(error)}")))
    else:
        connection.send(("document", item.number, document.encoded, document.replaced_frames))
