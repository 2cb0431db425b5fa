"""Members of tar archives by their headers alone, or by an index that lies beside the archive when that is true."""

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
"""What a store is asked for at once: most headers, with their longer names."""
MAX_END_BYTES = 2 * tarfile.RECORDSIZE
"""Most bytes after the last member."""
MAX_RECORD_BYTES = 1 << 20
"""Bytes that an archive is filled up to a multiple of, at most: `tar -b 2048`."""
INDEX_CHECKS = 16
"""Members of an index whose headers are looked at before it is believed."""


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
    """Time of its last change, seconds; 0 from an index."""
    is_cut: bool = False
    """Whether the archive ends within it."""

    @property
    def end(self) -> int:
        """Where the next header may begin."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def listed_members(path: str, start: int, end: int | None) -> Iterator[Member]:
    """As `members`, from a true index where there is one: for ranges of many members."""
    size = remote.size(path)
    index = _index(path, size)
    if index is None:
        yield from members(path, start, end)
    else:
        yield from (member for member in index if start <= member.header < (size if end is None else end))


def members(path: str, start: int, end: int | None) -> Iterator[Member]:
    """The members of an archive whose headers lie in [start, end), of which `start` is one; None is its end.

    One that is cut off is the last. Raises tarfile.TarError where the archive is damaged, OSError.
    """
    size = remote.size(path)
    end = size if end is None else end
    with remote.open_file(path, HEADER_BYTES) as file:
        yield from _pass(file, start, end, size)


def _pass(file: BinaryIO, start: int, end: int, size: int) -> Iterator[Member]:
    if start >= end:
        return
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None and info.offset < end:
            if info.isreg():
                is_cut = info.offset_data + info.size > size
                yield Member(info.name, info.offset, info.offset_data, info.size, info.mtime, is_cut)
                if is_cut:
                    return
            archive.members = []  # type: ignore[attr-defined] # It would keep every header that it saw.
        if info is None:
            _check_end(file, archive.offset, size)


def _check_end(file: BinaryIO, offset: int, size: int) -> None:
    """Raises ReadError unless the archive's end is there, or the file's: tarfile takes any damage for the end.

    An end is a few blocks of zeros; more of them, or something behind them, is a hole or another archive.
    """
    file.seek(offset)
    rest = file.read(max(0, min(size - offset, MAX_RECORD_BYTES + 1)))
    if rest.strip(b"\0") or len(rest) % BLOCK or len(rest) > MAX_RECORD_BYTES:
        raise tarfile.ReadError(f"there is no header of a member at byte {offset}, and no end of the archive")


def _index(path: str, size: int) -> list[Member] | None:
    """The members that ARCHIVE.idx lists, in the form of DALI's wds2idx; None where there is none or it is not true."""
    file_name = os.path.splitext(path)[0] + ".idx"
    if not remote.exists(file_name):
        return None
    with remote.open_file(file_name) as index:
        found = _parse_index(index.read().decode(errors="replace"))
    if found:
        with remote.open_file(path, HEADER_BYTES) as archive:
            step = max(1, len(found) // INDEX_CHECKS)
            if (
                _fits(found, size)
                and _is_true(archive, [*found[::step], found[-1]])
                and _ends_at(archive, found[-1].end)
            ):
                return found
    return None


def _parse_index(text: str) -> list[Member]:
    """Members of lines of `extension offset size name ...` below a line `v1.2 COUNT`; none of another form."""
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
    """Whether listed members follow each other from the first byte to where the archive of `size` bytes ends."""
    follow = all(before.end == after.header for before, after in itertools.pairwise(found))
    return (
        follow
        and found[0].header == 0
        and min(member.size for member in found) >= 0
        and 0 <= size - found[-1].end <= MAX_END_BYTES
    )


def _ends_at(archive: BinaryIO, offset: int) -> bool:
    archive.seek(offset)
    return not archive.read(BLOCK).strip(b"\0")


def _is_true(archive: BinaryIO, found: list[Member]) -> bool:
    for member in found:
        archive.seek(max(0, member.header))
        try:
            info = tarfile.TarInfo.frombuf(archive.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError:
            return False
        if (info.name, info.size) != (member.name, member.size):
            return False
    return True
