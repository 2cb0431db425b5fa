"""A picture file without its metadata, so that damaged or large metadata never keep Pillow from its pixels."""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from typing_extensions import override

MAX_METADATA_BYTES = 1 << 20
"""Most bytes of an EXIF or XMP block that are read."""
READ_BYTES = 1 << 20
"""Bytes per read where everything is read."""

Piece = bytes | range
"""New bytes, or a range of a file's own bytes."""


@dataclass(frozen=True)
class PixelPieces:
    """The pieces of a picture file that its pixels depend on, and what its metadata state about them."""

    pieces: Iterable[Piece]
    """Together a file of the same format; they may be found only as they are read."""
    orientation: int = 1
    """How the pixels are turned, 1 to 8 as in EXIF."""
    max_reduction: int = 1
    """Largest divisor of both sides at which it is decoded in the memory of the reduced picture: 1, 2, 4 or 8."""
    in_place: bool = False
    """Whether every kept byte has its old offset, so that a library may also read the file itself."""


class SplicedFile(io.RawIOBase):
    """The pieces of a file as one file object."""

    def __init__(self, file: BinaryIO, spliced: PixelPieces):
        self._file, self._in_place = file, spliced.in_place
        self._rest = iter(spliced.pieces)
        self._pieces: list[Piece] = []
        self._starts: list[int] = []
        self._end = self._position = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        if not self._in_place:
            raise io.UnsupportedOperation("the file itself holds other bytes")
        return self._file.fileno()

    @override
    def readinto(self, buffer) -> int:
        self._find_pieces(self._position + 1)
        if self._position >= self._end:
            return 0
        slot = bisect.bisect_right(self._starts, self._position) - 1
        data = self._read(self._pieces[slot], self._position - self._starts[slot], len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    @override
    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(READ_BYTES), b""))

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._find_pieces(None)
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}
        if bases[whence] + offset < 0:
            raise OSError(f"seek to {bases[whence] + offset}")
        self._position = bases[whence] + offset
        return self._position

    @override
    def tell(self) -> int:
        return self._position

    def _find_pieces(self, end: int | None) -> None:
        """Find pieces up to a position, all if it is None."""
        while end is None or self._end < end:
            piece = next(self._rest, None)
            if piece is None:
                return
            if len(piece):
                self._pieces.append(piece)
                self._starts.append(self._end)
                self._end += len(piece)

    def _read(self, piece: Piece, start: int, count: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[start : start + count]
        return read_at(self._file, piece.start + start, min(count, len(piece) - start))


def read_at(file: BinaryIO, start: int, count: int) -> bytes:
    """Read `count` bytes from `start` on, fewer at the file's end."""
    file.seek(start)
    return file.read(count)


def size_of(file: BinaryIO) -> int:
    """Size of a file, bytes."""
    return file.seek(0, os.SEEK_END)
