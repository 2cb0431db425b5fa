"""What a format of data files must answer: where the samples of a file lie, and a sample at such a place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longvita.data.errors import DataError, SampleError
from longvita.data.formats.record import FormatOptions
from longvita.data.sample import Sample
from longvita.data.storage import remote

READ_BYTES = 1 << 20
"""Bytes that are read at once where a whole range is gone through."""
MAX_SAMPLE_BYTES = 256 << 20
"""Bytes of the longest sample of a text file."""


@dataclass(frozen=True)
class Place:
    """Where a sample lies in its file: what `offset` and `size` count is the format's business."""

    offset: int
    """Below 2**64."""
    size: int
    """Below 2**32."""
    line: int
    """Number of the sample's line or record in its file, from 1, for people; below 2**32."""


@dataclass(frozen=True)
class Part:
    """A piece of a file that is indexed by itself: [start, end) in the unit of the format's places."""

    start: int
    end: int


class Format(Protocol):
    """One format of data files. Its methods are functions of file and options, so that any process may call them."""

    name: str
    """As in data.dataset.NAME.format."""

    def __init__(self, options: FormatOptions): ...

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Pieces of about `part_bytes`, in order; one that holds the same samples is cut the same after others grew."""

    def digest(self, path: str, part: Part) -> str:
        """Tells whether a piece changed since it was indexed."""

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """Each line or record of a piece, counted from 1 in it: its sample, why that can't be used, None for none."""

    def read(self, path: str, place: Place) -> Sample:
        """The sample at a place. Raises SampleError where there is none (any more), OSError if it cannot be read."""


def refuse_columns(options: FormatOptions, name: str) -> None:
    """Raises DataError where columns are named for a format whose form is fixed."""
    if options.columns:
        raise DataError(f"columns are for parquet, webdataset and captions; a file of format {name} has none")


def digest_bytes(path: str, part: Part) -> str:
    """The digest of the bytes [start, end) of a file."""
    digest = hashlib.blake2b(digest_size=16)
    left = part.end - part.start
    with remote.open_file(path) as file:
        file.seek(part.start)
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
