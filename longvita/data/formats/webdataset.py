"""WebDataset: tar archives in which the members with one key are a sample. Nothing is unpacked."""

from __future__ import annotations

import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.base import Part, Place
from longvita.data.formats.media_refs import transposed
from longvita.data.formats.record import EMPTY, FormatOptions, record_sample
from longvita.data.formats.tar import Member, listed_members, members
from longvita.data.formats.text import decode, parse_object
from longvita.data.media.media_file import FilePart
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.sample import Sample
from longvita.data.storage import remote

TEXTS = {"txt": "caption", "cls": "caption"}
"""Suffixes of text members other than json, and their names in a record."""
TEXT_BYTES = 8 << 10
"""Bytes of one request to a store for a text; a longer text is one request."""
MAX_BYTES = (1 << 32) - 1
"""Largest size of a Place."""


@dataclass(frozen=True)
class _Group:
    """Consecutive members with one key."""

    members: tuple[Member, ...]
    damage: str = ""
    """Why the archive cannot be read after these members."""


class WebDataset:
    """Places and parts count bytes of the archive, from a sample's first header to the end of its last member."""

    name = "webdataset"

    def __init__(self, options: FormatOptions):
        self.options = options

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts that begin with the first sample at or after each multiple of `part_bytes`."""
        bounds, size = [0], remote.size(path)
        for group in _groups(path, Part(0, size)):
            start = group.members[0].header if group.members else 0
            if start // part_bytes > bounds[-1] // part_bytes:
                bounds.append(start)
        return [Part(first, stop) for first, stop in itertools.pairwise([*bounds, size])] if size else []

    def digest(self, path: str, part: Part) -> str:
        """Digest of headers and texts; pictures and videos may be large and are compared by their headers alone."""
        digest = hashlib.blake2b(digest_size=16)
        with remote.open_file(path, TEXT_BYTES) as file:
            for group in _groups(path, part):
                for member in group.members:
                    digest.update(repr(member).encode())
                    if ending(member.name) in ("json", *TEXTS):
                        file.seek(member.data)
                        digest.update(file.read(member.size))
                digest.update(group.damage.encode())
        return digest.hexdigest()

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each key."""
        for number, group in enumerate(_groups(path, part), start=1):
            first = group.members[0].header if group.members else part.start
            size = group.members[-1].end - first if group.members else 0
            place = Place(first, min(size, MAX_BYTES), number)
            try:
                if group.damage:
                    raise SampleError(Reason.INVALID_SAMPLE, f"the archive can't be read from here: {group.damage}")
                if size > MAX_BYTES:
                    raise SampleError(Reason.INVALID_SAMPLE, f"a sample of {size} bytes; the maximum is {MAX_BYTES}")
                yield place, self._sample(path, group.members)
            except SampleError as error:
                yield place, error

    def read(self, path: str, place: Place) -> Sample:
        """The sample of a key."""
        for group in _grouped(members(path, place.offset, place.offset + place.size)):
            if group.members and not group.damage:
                return self._sample(path, group.members)
        raise SampleError(Reason.INVALID_SAMPLE, f"there is no sample at byte {place.offset} of {path}")

    def _sample(self, path: str, group: Sequence[Member]) -> Sample:
        record: dict[str, Any] = {}
        media: dict[str, list[FilePart]] = {"images": [], "videos": []}
        with remote.open_file(path, TEXT_BYTES) as file:
            for member in group:
                end = ending(member.name)
                if end == "json" or end in TEXTS:
                    file.seek(member.data)
                    record |= _parse_text(file.read(member.size), end, member.name)
                elif end in PICTURES or end in VIDEOS:
                    part = FilePart(path, member.data, member.size, member.name)
                    media["images" if end in PICTURES else "videos"].append(part)
        for kind, parts in media.items():
            name = next((name for name in self.options.names_of(kind) if record.get(name) not in EMPTY), None)
            # If the text lists its media, that list sets their order and number.
            record[name or self.options.names_of(kind)[0]] = _named(record[name], parts) if name else parts
        return record_sample(record, self.options)


def _named(value: Any, parts: Sequence[FilePart]) -> list[Any]:
    """Listed media: the member of that name, with or without folders; any other name is a path.

    If no name matches and there are as many names as members, the list means the members: pictures were renamed.
    """
    known = {os.path.basename(part.name): part for part in parts} | {part.name: part for part in parts}
    listed = transposed(value)
    names = [name for name in (listed if isinstance(listed, list) else [listed]) if name is not None]
    if len(names) == len(parts) and not any(name in known for name in names if isinstance(name, str)):
        return list(parts)
    return [known.get(name, name) if isinstance(name, str) else name for name in names]


def _groups(path: str, part: Part) -> Iterator[_Group]:
    """The samples whose headers are in a part."""
    return _grouped(listed_members(path, part.start, part.end))


def _grouped(found: Iterable[Member]) -> Iterator[_Group]:
    """Members by their keys; damage is reported with the last group."""
    group: list[Member] = []
    try:
        for member in found:
            if group and _key(member) != _key(group[0]):
                yield _Group(tuple(group))
                group = []
            group.append(member)
    except tarfile.TarError as error:
        yield _Group(tuple(group), damage=str(error))
        return
    if group:
        yield _Group(tuple(group), damage=f"it ends within {group[-1].name}" if group[-1].is_cut else "")


def _key(member: Member) -> str:
    """The name up to the first dot after the folders: a.0.jpg and a.1.jpg belong to one sample."""
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.split(".", 1)[0])


def _parse_text(content: bytes, end: str, name: str) -> dict[str, Any]:
    return {TEXTS[end]: decode(content, name).strip()} if end in TEXTS else parse_object(content, name)
