"""A data worker: a process that reads documents and decodes their tiles for one training process.

It is started as a program of its own, not forked, so it inherits no thread, no device and no lock, and it does without
torch. It ends when the training process closes the connection or dies.

Messages, worker to trainer: ("hello",), ("ready",), ("begin", number), ("alive",), ("document", number, Document),
("unusable", number, SampleError), ("done",), ("error", traceback). Trainer to worker: WorkerSetup after "hello", then
tasks, which are lists of (number, DocumentRequest).
"""

from __future__ import annotations

import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from longvita.data.document import DocumentReader
from longvita.data.errors import SampleError
from longvita.data.media.item import MediaSettings
from longvita.data.template import ChatTemplate
from longvita.data.tokenizer import LongVITATokenizer

BEAT_SECONDS = 1.0
"""Shortest time between two signs of life, seconds."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to read documents."""

    tokenizer: str
    """The tokenizer as JSON."""
    tokens_per_tile: int
    settings: MediaSettings

    def reader(self) -> DocumentReader:
        """The reader that these settings describe."""
        template = ChatTemplate(LongVITATokenizer.from_json(self.tokenizer), self.tokens_per_tile)
        return DocumentReader(template, self.settings)


def main(descriptor: int) -> None:
    """Serves tasks from the connection with this file descriptor until it closes."""
    # The training process decides when to stop: a signal to the whole group reaches it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        connection.send(("hello",))
        reader = connection.recv().reader()
        connection.send(("ready",))
        while True:
            for number, request in connection.recv():
                _serve(connection, reader, number, request)
            connection.send(("done",))
    except (EOFError, ConnectionError):
        return  # The training process is gone or does not need us any more.
    except Exception:
        connection.send(("error", traceback.format_exc()))
        raise


def _serve(connection: Connection, reader: DocumentReader, number: int, request) -> None:
    connection.send(("begin", number))
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            connection.send(("alive",))

    try:
        document = reader.read(request, beat)
    except SampleError as error:
        connection.send(("unusable", number, SampleError(error.reason, error.detail)))
    else:
        connection.send(("document", number, document))
