"""Members of tar archives, found by their headers alone or by a verified index file next to the archive.

The ranges are our own: tarfile reads an archive from its start, and an index part or a sample is a range of it.
"""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from longvita.data.storage import remote

BLOCK = tarfile.BLOCKSIZE
HEADER_BYTES = 4 * BLOCK
"""Bytes of one request to a store: enough for most headers with long names."""
MAX_END_BYTES = 2 * tarfile.RECORDSIZE
"""Bytes after the last member."""
MAX_RECORD_BYTES = 1 << 20
"""Largest record size that an archive is padded to: `tar -b 2048`."""
INDEX_CHECKS = 16
"""Members of an index file whose headers are compared before it is used."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    header: int
    """First byte of its header."""
    data: int
    """First byte of its content."""
    size: int
    """Bytes of its content."""
    time: float = 0.0
    """Modification time, seconds; 0 from an index file."""
    is_cut: bool = False
    """Whether the archive ends before its end."""

    @property
    def end(self) -> int:
        """First byte that the next header may have."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def listed_members(path: str, start: int, end: int) -> Iterator[Member]:
    """`members`, from the index file if it is correct: for ranges of many members."""
    index = _index(path, remote.size(path))
    if index is None:
        return members(path, start, end)
    return (member for member in index if start <= member.header < end)


def members(path: str, start: int, end: int) -> Iterator[Member]:
    """The members of an archive whose headers are in [start, end). `start` is that of a header.

    A truncated member is the last. Raises tarfile.TarError if the archive is damaged, OSError.
    """
    if start >= end:
        return
    size = remote.size(path)
    with remote.open_file(path, HEADER_BYTES) as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None and info.offset < end:
                if info.isreg():
                    is_cut = info.offset_data + info.size > size
                    yield Member(info.name, info.offset, info.offset_data, info.size, info.mtime, is_cut)
                    if is_cut:
                        return
                archive.members = []  # type: ignore[attr-defined] # It would keep all headers.
            if info is None:
                _check_end(file, archive.offset, size)


def _check_end(file: BinaryIO, offset: int, size: int) -> None:
    """Raise ReadError unless the archive ends at `offset`: tarfile reports damage as the end.

    An end is some blocks of zeros or the file's end. More zeros, or data after them, are a hole or another archive.
    """
    file.seek(offset)
    rest = file.read(max(0, min(size - offset, MAX_RECORD_BYTES + 1)))
    if rest.strip(b"\0") or len(rest) % BLOCK or len(rest) > MAX_RECORD_BYTES:
        raise tarfile.ReadError(f"there is no header of a member at byte {offset}, and no end of the archive")


def _index(path: str, size: int) -> list[Member] | None:
    """The members of ARCHIVE.idx in the format of DALI's wds2idx; None if the file does not exist or is wrong."""
    file_name = os.path.splitext(path)[0] + ".idx"
    if not remote.exists(file_name):
        return None
    with remote.open_file(file_name) as index:
        found = _parse_index(index.read().decode(errors="replace"))
    if found:
        with remote.open_file(path, HEADER_BYTES) as archive:
            step = max(1, len(found) // INDEX_CHECKS)
            if _fits(found, size) and _headers_match(archive, [*found[::step], found[-1]]):
                archive.seek(found[-1].end)
                return None if archive.read(BLOCK).strip(b"\0") else found
    return None


def _parse_index(text: str) -> list[Member]:
    """Members from lines `extension offset size name ...` after a line `v1.2 COUNT`; none in another format."""
    head, *lines = text.splitlines() or [""]
    if head.split() != ["v1.2", str(len(lines))]:
        return []
    found = []
    for words in map(str.split, lines):
        try:
            for at in range(0, len(words), 4):
                _, data, size, name = words[at : at + 4]
                found.append(Member(name, int(data) - BLOCK, int(data), int(size)))
        except ValueError:
            return []
    return found


def _fits(found: list[Member], size: int) -> bool:
    """Whether members follow each other without gaps from the first byte to the end of an archive of `size` bytes."""
    follow = all(before.end == after.header for before, after in itertools.pairwise(found))
    return (
        follow
        and found[0].header == 0
        and min(member.size for member in found) >= 0
        and 0 <= size - found[-1].end <= MAX_END_BYTES
    )


def _headers_match(archive: BinaryIO, found: list[Member]) -> bool:
    for member in found:
        archive.seek(max(0, member.header))
        try:
            info = tarfile.TarInfo.frombuf(archive.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError:
            return False
        if (info.name, info.size) != (member.name, member.size):
            return False
    return True
