"""WebP: the chunks that pixels depend on, and its EXIF and XMP."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from longvita.data.media.pictures import exif
from longvita.data.media.pictures.pieces import MAX_METADATA_BYTES, Piece, PixelPieces, read_at, size_of

PIXEL_CHUNKS = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
EXIF_FLAG, XMP_FLAG, ICC_FLAG = 0x08, 0x04, 0x20
_HEADER = struct.Struct("<4sI")


def is_webp(head: bytes) -> bool:
    """Whether a file begins as WebP does."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def split(file: BinaryIO) -> PixelPieces:
    """Split a WebP file. As in libwebp, there is EXIF and XMP only if the extended header has their flags."""
    pieces: list[Piece] = []
    flags, blocks = 0, {b"EXIF": b"", b"XMP ": b""}
    for kind, chunk in _chunks(file):
        if kind == b"VP8X":
            header = read_at(file, chunk.start, len(chunk))
            flags = header[8] if len(header) > 8 else 0
            pieces.append(header[:8] + bytes([flags & ~(EXIF_FLAG | XMP_FLAG | ICC_FLAG)]) + header[9:])
        elif kind in PIXEL_CHUNKS:
            pieces.append(chunk)
        elif kind in blocks and not blocks[kind]:
            blocks[kind] = read_at(file, chunk.start + 8, min(len(chunk) - 8, MAX_METADATA_BYTES))
    start = b"RIFF" + struct.pack("<I", 4 + sum(map(len, pieces))) + b"WEBP"
    turned = exif.orientation(
        blocks[b"EXIF"] if flags & EXIF_FLAG else b"", blocks[b"XMP "] if flags & XMP_FLAG else b""
    )
    return PixelPieces([start, *pieces], turned)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, range]]:
    """Kind and place of each chunk, with its padding, up to the file's end."""
    position, size = 12, size_of(file)
    while position + _HEADER.size <= size:
        kind, length = _HEADER.unpack(read_at(file, position, _HEADER.size))
        end = min(position + _HEADER.size + length + length % 2, size)
        yield kind, range(position, end)
        position = end
