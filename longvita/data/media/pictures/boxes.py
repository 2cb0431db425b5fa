"""Files of boxes (ISO base media): AVIF, HEIC and JPEG 2000 without their metadata."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from longvita.data.media.pictures.pieces import Piece, PixelPieces, read_at, size_of

JP2_SIGNATURE, CODESTREAM_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
JP2_BOXES = (b"jP  ", b"ftyp", b"jp2c")
JP2_HEADER_BOXES = (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef")
CODING_STYLE, START_OF_TILE = b"\xff\x52", b"\xff\x90"
MAX_REDUCTION = 8
AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
METADATA_ITEMS = (b"Exif", b"mime", b"uri ")
HIDDEN_ITEM = b"skip"
"""Kind of item that no library reads."""


def brands(head: bytes) -> set[bytes]:
    """The brands at the begin of a file; empty if it does not begin with them."""
    if head[4:8] != b"ftyp":
        return set()
    listed = head[8 : min(int.from_bytes(head[:4], "big"), len(head))]
    return {listed[place : place + 4] for place in range(0, len(listed), 4) if place != 4}


def split_items(file: BinaryIO) -> PixelPieces:
    """Hide the metadata items of an AVIF or HEIC file: their orientation is a property of the picture, not EXIF's."""
    pieces: list[Piece] = []
    size, position = size_of(file), 0
    for place in _metadata_items(file, size):
        pieces += [range(position, place), HIDDEN_ITEM]
        position = place + len(HIDDEN_ITEM)
    return PixelPieces([*pieces, range(position, size)], in_place=True)


def _metadata_items(file: BinaryIO, size: int) -> Iterator[int]:
    """Where the kinds of the metadata items are stored."""
    for meta in _inside(file, range(size), b"meta", 4):
        for infos in _inside(file, meta, b"iinf", 0):
            wide = read_at(file, infos.start, 1) != b"\0"
            for entry in _inside(file, range(infos.start + (8 if wide else 6), infos.stop), b"infe", 0):
                place = entry.start + (8 if read_at(file, entry.start, 1) == b"\2" else 10)
                if read_at(file, place, 4) in METADATA_ITEMS:
                    yield place


def split_jp2(file: BinaryIO) -> PixelPieces:
    """Split a JPEG 2000 file. It has no orientation: EXIF in it is a private box."""
    pieces: list[Piece] = []
    reduction = 1
    for kind, box, content in _boxes(file, range(size_of(file))):
        if kind in JP2_BOXES:
            pieces.append(box)
        if kind == b"jp2h":
            kept = [box for kind, box, _ in _boxes(file, content) if kind in JP2_HEADER_BOXES]
            pieces += [struct.pack(">I4s", 8 + sum(map(len, kept)), b"jp2h"), *kept]
        if kind == b"jp2c":
            reduction = _reduction(file, content)
            break
    return PixelPieces(pieces, max_reduction=reduction)


def split_codestream(file: BinaryIO) -> PixelPieces:
    """A JPEG 2000 file without boxes."""
    complete = range(size_of(file))
    return PixelPieces([complete], max_reduction=_reduction(file, complete))


def _reduction(file: BinaryIO, codestream: range) -> int:
    """Largest divisor of the sides that the levels of a codestream allow, at most MAX_REDUCTION."""
    position = codestream.start + 2
    while position < codestream.stop:
        head = read_at(file, position, 10)
        if len(head) < 10 or head[:2] == START_OF_TILE:
            break
        if head[:2] == CODING_STYLE:
            return min(1 << head[9], MAX_REDUCTION)
        position += 2 + max(2, int.from_bytes(head[2:4], "big"))
    return 1


def _inside(file: BinaryIO, place: range, wanted: bytes, skipped: int) -> Iterator[range]:
    """The contents of the boxes of one kind, without their first `skipped` bytes."""
    for kind, _, content in _boxes(file, place):
        if kind == wanted:
            yield range(content.start + skipped, content.stop)


def _boxes(file: BinaryIO, place: range) -> Iterator[tuple[bytes, range, range]]:
    """Kind, place and content of each box; a damaged length ends them."""
    position = place.start
    while position + 8 <= place.stop:
        head = read_at(file, position, 16)
        length, begin = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, begin = int.from_bytes(head[8:], "big"), 16
        end = place.stop if length == 0 else position + length
        if end < position + begin:
            return
        end = min(end, place.stop)
        yield head[4:8], range(position, end), range(position + begin, end)
        position = end
