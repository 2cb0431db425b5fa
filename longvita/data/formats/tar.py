"""Members of tar archives, found by their headers alone or by a verified index file next to the archive.

The ranges are our own: tarfile reads an archive from its start, and an index part or a sample is a range of it. Hidden
members, as macOS adds them, are left out.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from longvita.data.media.media_file import FilePart
from longvita.data.storage import remote
from longvita.data.storage.hidden import is_hidden

BLOCK = tarfile.BLOCKSIZE
HEADER_BYTES = 4 * BLOCK
"""Bytes of one request to a store: enough for most headers with long names."""
PIECE_BYTES = 64 << 10
"""Bytes of one request to a store for the headers and texts of a range that is not read at once."""
MAX_END_BYTES = 2 * tarfile.RECORDSIZE
"""Bytes after the last member."""
MAX_RECORD_BYTES = 1 << 20
"""Largest record size that an archive is padded to: `tar -b 2048`."""
MAX_OFFSET = 1 << 60
"""Bytes that no archive has: a header that states more is damaged."""
INDEX_CHECKS = 16
"""Members of an index file whose headers are compared before it is used."""


LINK = "is a link; fix: pack the files themselves (tar --dereference --hard-dereference)"
SPARSE = "is stored as a sparse file; fix: pack the archive without tar's option --sparse"


@dataclass(frozen=True, slots=True)
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
    """Whether the archive ends before the next header can begin."""
    problem: str = ""
    """Why the bytes at `data` are not its content, and the fix; empty if they are."""

    @property
    def end(self) -> int:
        """First byte that the next header may have."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def listed_members(path: str, start: int, end: int) -> Iterator[Member]:
    """`members`, from the index file if it is correct: for ranges of many members."""
    index = _index(path, remote.size(path))
    if index is None:
        return members(path, start, end)
    return (member for member in index if start <= member.header < end and not is_hidden(member.name))


def members(path: str, start: int, end: int) -> Iterator[Member]:
    """The members of an archive whose headers are in [start, end). `start` is that of a header.

    A truncated member is the last. Raises tarfile.TarError if the archive is damaged, OSError.
    """
    if start >= end:
        return
    with remote.open_file(path, HEADER_BYTES) as file:
        yield from _members_of(file, 0, start, end)


class TarRange(contextlib.AbstractContextManager):
    """A range of an archive, open for reading. It begins with a header.

    max_joined: from a store, so many bytes are read in one request and held; a larger range is read in pieces, and its
    pictures and videos by requests of their own. Raises OSError.
    """

    def __init__(self, path: str, start: int, size: int, max_joined: int):
        self._path, self._start, self._end = path, start, start + size
        self._is_held = remote.is_remote(path) and size <= max_joined
        self._base = start if self._is_held else 0
        self._file: BinaryIO = (
            io.BytesIO(remote.read_range(path, start, size)) if self._is_held else remote.open_file(path, PIECE_BYTES)
        )

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def members(self) -> Iterator[Member]:
        """The members whose headers are in the range. Raises tarfile.TarError, OSError."""
        return _members_of(self._file, self._base, self._start, self._end)

    def read(self, member: Member) -> bytes:
        """The content of a member."""
        self._file.seek(member.data - self._base)
        return self._file.read(member.size)

    def part(self, member: Member) -> FilePart:
        """A member as a part of the archive, with its bytes if they are held."""
        content = self.read(member) if self._is_held else None
        return FilePart(self._path, member.data, member.size, member.name, content)


def _members_of(file: BinaryIO, base: int, start: int, end: int) -> Iterator[Member]:
    """`members`, of an archive whose byte `base` is the first of `file`."""
    size = base + file.seek(0, os.SEEK_END)
    file.seek(start - base)
    with _damage_as_tar_error(start):
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed by the next block.
    with archive:
        info = archive.next()
        while info is not None:
            if not info.offset_data <= archive.offset < MAX_OFFSET:
                raise tarfile.ReadError(f"the header at byte {base + info.offset} has a size of {info.size} bytes")
            if (info.isreg() or info.islnk() or info.issym()) and not is_hidden(info.name):
                member = _member(info, base, archive.offset, is_cut=base + archive.offset > size)
                yield member
                if member.is_cut:
                    return
            if end <= base + archive.offset <= size:
                return
            archive.members = []  # type: ignore[attr-defined] # It would keep all headers.
            with _damage_as_tar_error(base + archive.offset):
                info = archive.next()
        _check_end(file, archive.offset, size - base)


@contextlib.contextmanager
def _damage_as_tar_error(start: int) -> Iterator[None]:
    """Raise ReadError for the other errors that tarfile raises for damaged headers, such as those of sparse files."""
    try:
        yield
    except (ValueError, OverflowError, LookupError) as error:
        raise tarfile.ReadError(f"the header at byte {start} is damaged: {error}") from error


def _member(info: tarfile.TarInfo, base: int, end: int, is_cut: bool) -> Member:
    """The member of a header of a file that begins at byte `base` of the archive. `end`: byte of the next header."""
    problem = LINK if not info.isreg() else SPARSE if info.issparse() else ""
    stored = end - info.offset_data if problem else info.size
    return Member(info.name, base + info.offset, base + info.offset_data, stored, float(info.mtime), is_cut, problem)


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
