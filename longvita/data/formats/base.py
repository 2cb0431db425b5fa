"""The interface of a data file format: the places of the samples in a file, and the sample at a place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longvita.data.errors import SampleError
from longvita.data.formats.record import FormatOptions, parse_record
from longvita.data.formats.wrong_format import wrong_format
from longvita.data.sample import Sample
from longvita.data.storage import remote

READ_BYTES = 1 << 20
"""Bytes of one read when a range is read from end to end."""
MAX_SAMPLE_BYTES = 256 << 20
"""Longest sample of a text file, bytes."""


@dataclass(frozen=True)
class Place:
    """The place of a sample in its file; the format defines the unit of `offset` and `size`."""

    offset: int
    """Below 2**64."""
    size: int
    """Below 2**32."""
    line: int
    """Number of the sample's line or record in its file, from 1, for messages; below 2**32."""
    more: tuple[tuple[int, int], ...] = ()
    """Offset and size of each further range, of a sample that lies in several."""
    shape: str = ""
    """What the format must know to read the sample without its pictures and videos: ASCII, with few values per file."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Offset and size of each range."""
        return (self.offset, self.size), *self.more


@dataclass(frozen=True)
class Part:
    """A range [start, end) of a file that is indexed by itself, in the unit of the format's places."""

    start: int
    end: int


class Format(Protocol):
    """A format of data files. Its methods depend on the file and the options alone, so any process may call them."""

    name: str
    """As in data.dataset.NAME.format."""

    def __init__(self, options: FormatOptions): ...

    def problem(self, path: str) -> str | None:
        """Why the file as a whole is not of this format, with the fix; None if it may be. Raises OSError.

        The other methods are called for files without such a problem.
        """

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts of about `part_bytes`, in order. Samples added at the end of a file do not change the parts before."""

    def digest(self, path: str, part: Part) -> str:
        """A digest that differs if the part changed since it was indexed."""

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """Yield, for each line or record of a part, counted from 1, its sample, its error, or None for a blank line."""

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """Read the sample at a place. Raises SampleError if there is none (any more), OSError if the read fails.

        with_media: whether its pictures or videos will be opened, so that they may be read together with its text.
        """


class TextFormat:
    """What the formats of JSON objects share. Places and parts count bytes of the file."""

    name: str

    def __init__(self, options: FormatOptions):
        self.options = options

    def problem(self, path: str) -> str | None:
        """What the file's beginning shows."""
        return wrong_format(path, self.name)

    def digest(self, path: str, part: Part) -> str:
        """Digest of the bytes."""
        return digest_bytes(path, part)

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """The sample of a line or an element."""
        with remote.open_file(path) as file:
            file.seek(place.offset)
            return self.parse(file.read(place.size))

    def parse(self, content: bytes) -> Sample:
        """The sample of the bytes of a place. Raises SampleError."""
        return parse_record(content, self.options)


def digest_bytes(path: str, part: Part) -> str:
    """Digest of the bytes [start, end) of a file."""
    digest = hashlib.blake2b(digest_size=16)
    left = part.end - part.start
    with remote.open_file(path) as file:
        file.seek(part.start)
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
