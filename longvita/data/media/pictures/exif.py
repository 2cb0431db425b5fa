"""The orientation that EXIF or XMP metadata state, and directories of tags in TIFF's form, as EXIF uses it."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from longvita.data.media.pictures.pieces import MAX_METADATA_BYTES, read_at

ORIENTATION, XMP = 0x0112, 0x02BC
"""Tags."""
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
EXIF_PREFIX = b"Exif\0\0"
ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
"""Byte order by the first bytes of TIFF and, with a plus, of BigTIFF."""
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Format of struct for each TIFF type of whole numbers."""
BYTE_TYPES = (1, 2, 7)
"""TIFF types of one byte: BYTE, ASCII, UNDEFINED."""


@dataclass(frozen=True)
class Entry:
    """One tag of a directory, as it is stored."""

    tag: int
    kind: int
    """TIFF's number of the type."""
    count: int
    field: bytes
    """The value, or the offset of a longer one."""
    stored: bytes
    """All bytes of the entry."""


@dataclass(frozen=True)
class Directory:
    """A directory of tags (IFD): as many of its entries as the file holds."""

    order: str
    """Byte order as struct writes it."""
    is_big: bool
    """Whether it is one of BigTIFF, which has longer fields."""
    start: int
    """Offset in the file."""
    entries: tuple[Entry, ...]

    def with_tags(self, tags: frozenset[int]) -> bytes:
        """The bytes of a last directory with those entries alone whose tag is in `tags`."""
        kept = [entry.stored for entry in self.entries if entry.tag in tags]
        count, following = ("Q", "Q") if self.is_big else ("H", "I")
        return struct.pack(self.order + count, len(kept)) + b"".join(kept) + struct.pack(self.order + following, 0)

    def number(self, tag: int) -> int | None:
        """The whole number of a tag; None if the tag is absent or holds something else."""
        for entry in self.entries:
            form = self.order + WHOLE_NUMBERS.get(entry.kind, "Q")
            if entry.tag == tag and entry.kind in WHOLE_NUMBERS and struct.calcsize(form) <= len(entry.field):
                return struct.unpack_from(form, entry.field)[0]
        return None

    def text(self, file: BinaryIO, tag: int) -> bytes:
        """The first bytes of a tag's text in the file; empty if the tag is absent or holds something else."""
        for entry in self.entries:
            if entry.tag == tag and entry.kind in BYTE_TYPES and entry.count > len(entry.field):
                (start,) = struct.unpack(self.order + ("Q" if self.is_big else "I"), entry.field)
                return read_at(file, start, min(entry.count, MAX_METADATA_BYTES)) if start < 1 << 63 else b""
        return b""


def read_directory(file: BinaryIO) -> Directory | None:
    """Read the first directory of a TIFF file; None if there is none."""
    head = read_at(file, 0, 16)
    order, is_big = ORDERS.get(head[:4], ""), head[2:4] in (b"+\0", b"\0+")
    address, counter = (order + "Q", order + "Q") if is_big else (order + "I", order + "H")
    shape = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    try:
        (start,) = struct.unpack_from(address, head, 8 if is_big else 4) if order else (1 << 63,)
        if start >= 1 << 63:
            return None
        (count,) = struct.unpack(counter, read_at(file, start, struct.calcsize(counter)))
    except struct.error:
        return None
    stored = file.read(shape.size * min(count, 1 << 16))
    rows = [stored[place : place + shape.size] for place in range(0, len(stored) - shape.size + 1, shape.size)]
    return Directory(order, is_big, start, tuple(_entry(shape, row) for row in rows))


def _entry(shape: struct.Struct, stored: bytes) -> Entry:
    tag, kind, count, field = shape.unpack(stored)
    return Entry(tag, kind, count, field, stored)


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Orientation 1 to 8 in an EXIF block, else in XMP, as Pillow's exif_transpose reads it; else 1."""
    while exif.startswith(EXIF_PREFIX):
        exif = exif[len(EXIF_PREFIX) :]
    directory = read_directory(io.BytesIO(exif))
    return stated_orientation(directory.number(ORIENTATION) if directory is not None else None, xmp)


def stated_orientation(tag: int | None, xmp: bytes) -> int:
    """The orientation of EXIF's tag, else of XMP; 1 if there is none or no such orientation."""
    if tag is None and (found := XMP_ORIENTATION.search(xmp)):
        tag = int(found[1])
    return tag if tag is not None and 1 <= tag <= 8 else 1
