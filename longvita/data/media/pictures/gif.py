"""GIF: its first picture without comments and extensions of applications. It has no orientation."""

from __future__ import annotations

from typing import BinaryIO

from longvita.data.media.pictures.pieces import Piece, PixelPieces, read_at, size_of

SIGNATURES = (b"GIF87a", b"GIF89a")
EXTENSION, GRAPHIC_CONTROL = b"!", 0xF9


def split(file: BinaryIO) -> PixelPieces:
    """Split a GIF file. Of the extensions before the first picture only the one with its transparency is kept."""
    head = read_at(file, 0, 13)
    flags = head[10] if len(head) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pieces: list[Piece] = [range(position)]
    while read_at(file, position, 1) == EXTENSION:
        label, first = (*file.read(2), 0, 0)[:2]
        start, position = position, _after_blocks(file, position + 2)
        if label == GRAPHIC_CONTROL and first >= 4:
            pieces.append(range(start, position))
    return PixelPieces([*pieces, range(position, size_of(file))])


def _after_blocks(file: BinaryIO, position: int) -> int:
    """The position after a sequence of blocks, which an empty one ends."""
    while length := int.from_bytes(read_at(file, position, 1), "little"):
        position += 1 + length
    return position + 1
