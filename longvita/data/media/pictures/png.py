"""PNG: the chunks that pixels depend on, and its EXIF and XMP."""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from longvita.data.media.pictures import exif
from longvita.data.media.pictures.pieces import MAX_METADATA_BYTES, PixelPieces, read_at, size_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEYWORD, EXIF_KEYWORD = b"XML:com.adobe.xmp", b"Raw profile type exif"
_HEADER = struct.Struct(">I4s")


def split(file: BinaryIO) -> PixelPieces:
    """Split a PNG file. EXIF and XMP after the first pixels are not looked for: that would read the whole file."""
    head, blocks = [range(len(SIGNATURE))], {b"eXIf": b"", XMP_KEYWORD: b"", EXIF_KEYWORD: b""}
    for kind, chunk in _chunks(file, len(SIGNATURE)):
        if kind == b"IDAT":
            rest = (chunk for kind, chunk in _chunks(file, chunk.start) if kind in PIXEL_CHUNKS)
            block = blocks[b"eXIf"] or _hexadecimal(blocks[EXIF_KEYWORD])
            return PixelPieces(itertools.chain(head, rest), exif.orientation(block, blocks[XMP_KEYWORD]))
        if kind in PIXEL_CHUNKS:
            head.append(chunk)
        elif kind == b"eXIf" or kind in TEXT_CHUNKS:
            content = read_at(file, chunk.start + 8, min(len(chunk) - 12, MAX_METADATA_BYTES))
            keyword, text = (kind, content) if kind == b"eXIf" else _text(kind, content)
            blocks |= {keyword: text} if keyword in blocks else {}
    return PixelPieces([range(size_of(file))])


def _chunks(file: BinaryIO, position: int) -> Iterator[tuple[bytes, range]]:
    """Kind and place of each chunk; what is no chunk any more counts as pixels, for Pillow to judge."""
    size = size_of(file)
    while position < size:
        header = read_at(file, position, _HEADER.size)
        if len(header) < _HEADER.size or not header[4:].isalnum():
            yield b"IDAT", range(position, size)
            return
        length, kind = _HEADER.unpack(header)
        end = min(position + length + 12, size)
        yield kind, range(position, end)
        position = end


def _text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Keyword and text of a text chunk: at most MAX_METADATA_BYTES of it, as far as it can be decompressed."""
    keyword, _, text = content.partition(b"\0")
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind == b"zTXt":
        text = text[1:]
    if is_compressed and keyword in (XMP_KEYWORD, EXIF_KEYWORD):
        try:
            text = zlib.decompressobj().decompress(text, MAX_METADATA_BYTES)
        except zlib.error:
            text = b""
    return keyword, text


def _hexadecimal(profile: bytes) -> bytes:
    """The bytes of a profile that ImageMagick wrote as text: a name, the number of bytes, hexadecimal digits."""
    digits = re.sub(rb"\s", b"", b"".join(profile.split(b"\n")[3:]))
    try:
        return bytes.fromhex(digits[: len(digits) & ~1].decode("ascii"))
    except ValueError:
        return b""
