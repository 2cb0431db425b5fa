"""JPEG: the segments that pixels depend on, and its EXIF and XMP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from longvita.data.media.pictures import exif
from longvita.data.media.pictures.pieces import MAX_METADATA_BYTES, Piece, PixelPieces, read_at, size_of

SIGNATURE = b"\xff\xd8\xff"
START_OF_SCAN, COMMENT = 0xDA, 0xFE
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a picture."""
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
"""Those of them that are decoded row by row, if all colours come in one scan."""
APPLICATION = range(0xE0, 0xF0)
ALONE = (0x01, *range(0xD0, 0xDA))
"""Markers without content."""
COLOUR_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Segments by which libjpeg determines the colours: begin, and fewest bytes that it reads one with."""
EXIF_BEGIN, XMP_BEGIN = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
MAX_REDUCTION = 8
MARKER = re.compile(rb"\xff[^\xff\0]", re.DOTALL)
MAX_SKIPPED_BYTES = 64 << 10
"""Most bytes between two segments; a file with more is damaged."""
MAX_SEGMENTS = 8192
"""Segments that are looked at: an XMP block of 500 MB has as many."""


def split(file: BinaryIO) -> PixelPieces:
    """Split a JPEG file. Of an MPO file only the first picture is read, without the index of the others."""
    pieces: list[Piece] = [range(2)]
    blocks = {EXIF_BEGIN: b"", XMP_BEGIN: b""}
    frame, position, reduction = 0, 2, 1
    colours = b"\0"
    for marker, segment in _segments(file):
        content = read_at(file, segment.start + 4, min(len(segment) - 4, MAX_METADATA_BYTES)) if marker else b""
        if marker in FRAMES:
            frame, colours = marker, content[5:6]
        if marker == 0xE1:
            blocks |= {begin: content for begin in blocks if content.startswith(begin) and not blocks[begin]}
        if marker == START_OF_SCAN:
            reduction = MAX_REDUCTION if frame in SEQUENTIAL and content[:1] == colours else 1
        elif not _is_metadata(marker, content):
            pieces.append(segment)
        position = segment.stop
        if marker == START_OF_SCAN:
            position = segment.start
            break
    pieces.append(range(position, size_of(file)))
    turned = exif.orientation(blocks[EXIF_BEGIN], blocks[XMP_BEGIN])
    return PixelPieces(pieces, turned, reduction)


def _segments(file: BinaryIO) -> Iterator[tuple[int, range]]:
    """Marker and place of each segment up to the first scan; ends early where the file is damaged."""
    position, size = 2, size_of(file)
    for _ in range(MAX_SEGMENTS):
        head = read_at(file, position, 4)
        if not MARKER.match(head):
            # Between segments libjpeg skips other bytes too.
            found = MARKER.search(read_at(file, position, MAX_SKIPPED_BYTES))
            if found is None:
                return
            position += found.start()
            head = read_at(file, position, 4)
        alone = head[1] in ALONE
        end = position + 2 + (0 if alone else int.from_bytes(head[2:], "big"))
        if len(head) < 4 or end > size or (not alone and end < position + 4):
            return
        yield head[1], range(position, end)
        position = end


def _is_metadata(marker: int, content: bytes) -> bool:
    if marker in COLOUR_SEGMENTS:
        begin, fewest = COLOUR_SEGMENTS[marker]
        return not content.startswith(begin) or len(content) < fewest
    return marker in APPLICATION or marker == COMMENT
