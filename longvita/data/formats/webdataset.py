"""WebDataset: tar archives in which the members with one key are a sample. Nothing is unpacked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.base import Part, Place
from longvita.data.formats.media_refs import transposed
from longvita.data.formats.record import EMPTY, FormatOptions, record_sample
from longvita.data.formats.tar import Member, TarRange, listed_members
from longvita.data.formats.tar_keys import Runs, find_runs, key_of
from longvita.data.formats.text import decode, parse_object
from longvita.data.formats.wrong_format import wrong_format
from longvita.data.media.media_file import FilePart
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.natural_order import natural_key
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.data.storage.retries import with_retries
from longvita.errors import shorten

CAPTIONS = ("txt", "cls")
"""Suffixes of members with a caption, the first that a sample has is used."""
TEXTS = ("json", *CAPTIONS)
TEXT_BYTES = 8 << 10
"""Bytes of one request to a store for a text; a longer text is one request."""
MAX_BYTES = (1 << 32) - 1
"""Largest size of a Place."""
MAX_HELD = 1 << 16
"""Members that are held while a part is read, about 20 MB: more than a part of the usual size has. The headers of a
larger one are read again."""
JOINED_BYTES = 8 << 20
"""Largest sample that is read from a store in one request: about what a connection delivers while two requests wait."""
JOINED_TEXT_BYTES = 256 << 10
"""The same for a sample whose pictures and videos are not needed."""


class WebDataset:
    """Places and parts count bytes of the archive, from a sample's first header to the end of its last member."""

    name = "webdataset"

    def __init__(self, options: FormatOptions):
        self.options = options

    def problem(self, path: str) -> str | None:
        """What the file's beginning shows."""
        return wrong_format(path, self.name)

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts that begin with the first sample at or after each multiple of `part_bytes`; no sample is in two."""
        bounds, size = [0], remote.size(path)
        for start in find_runs(path, 0, size).independent_starts().tolist():
            if start // part_bytes > bounds[-1] // part_bytes:
                bounds.append(start)
        return [Part(first, stop) for first, stop in itertools.pairwise([*bounds, size])] if size else []

    def digest(self, path: str, part: Part) -> str:
        """Digest of headers and texts; pictures and videos may be large and are compared by their headers alone."""
        digest = hashlib.blake2b(digest_size=16)
        with remote.open_file(path, TEXT_BYTES) as file:
            try:
                for member in listed_members(path, part.start, part.end):
                    digest.update(repr(member).encode())
                    if ending(member.name) in TEXTS:
                        file.seek(member.data)
                        digest.update(file.read(member.size))
            except tarfile.TarError as error:
                digest.update(str(error).encode())
        return digest.hexdigest()

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each key."""
        runs = find_runs(path, part.start, part.end, MAX_HELD)
        if runs.damage and len(runs.keys) == 0:
            yield Place(part.start, 0, 1), _damaged(runs)
        for line, numbers in enumerate(runs.samples(), start=1):
            place = _place(runs, numbers, line)
            try:
                _check_complete(runs, numbers)
                held = [runs.members[number] for number in numbers] if runs.members else []
                read = functools.partial(self._read, path, place, JOINED_BYTES, held)
                yield place, with_retries(read, f"{path}:{line}")
            except SampleError as error:
                yield place, error

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """The sample of a key. From a store, members that are neighbours are read in one request."""
        return self._read(path, place, JOINED_BYTES if with_media else JOINED_TEXT_BYTES)

    def _read(self, path: str, place: Place, max_joined: int, held: Sequence[list[Member]] = ()) -> Sample:
        """`read`; held: the members of each range, if they are known."""
        members = _Members()
        try:
            for number, (start, size) in enumerate(place.ranges):
                with TarRange(path, start, size, max_joined) as archive:
                    for member in held[number] if held else archive.members():
                        members.add(member, archive)
        except tarfile.TarError as error:
            raise SampleError(Reason.INVALID_SAMPLE, f"there is no sample at byte {place.offset}: {error}") from error
        return members.sample(self.options)


class _Members:
    """The members of one sample."""

    def __init__(self) -> None:
        self._key = ""
        self._names: set[str] = set()
        self._texts: dict[str, tuple[bytes, str]] = {}
        """Content and name by suffix."""
        self._media: dict[str, list[FilePart]] = {"images": [], "videos": []}
        self._others: set[str] = set()

    def add(self, member: Member, archive: TarRange) -> None:
        """Add a member, in the order of the archive.

        Raises SampleError for one that belongs to another sample: the name was there before, or a text of its kind.
        """
        end = ending(member.name)
        self._check(member, end)
        self._key = key_of(member.name)
        self._names.add(member.name)
        if end in TEXTS:
            self._texts[end] = archive.read(member), member.name
        elif end in PICTURES or end in VIDEOS:
            self._media["images" if end in PICTURES else "videos"].append(archive.part(member))
        else:
            self._others.add(f".{end}" if end else "(no suffix)")

    def sample(self, options: FormatOptions) -> Sample:
        """The sample of all members. Raises SampleError."""
        record = parse_object(*self._texts["json"]) if "json" in self._texts else {}
        captions = [self._texts[end] for end in CAPTIONS if end in self._texts]
        if captions:
            record["caption"] = decode(*captions[0]).strip()
        for kind, parts in self._media.items():
            name = next((name for name in options.names_of(kind) if record.get(name) not in EMPTY), "")
            # If the text lists its media, that list sets their order and number.
            used = _named(record[name], parts) if name else parts
            record[name or options.names_of(kind)[0]] = used
            left = {part.name for part in parts}.difference(one.name for one in used if isinstance(one, FilePart))
            self._others.update(f".{ending(name)}" for name in left)
        sample = record_sample(record, options)
        others = {*self._others, *(f".{end}" for end in CAPTIONS[1:] if len(captions) > 1)}
        return dataclasses.replace(sample, unused=tuple(sorted({*sample.unused, *others})))

    def _check(self, member: Member, end: str) -> None:
        name, key = shorten(member.name), shorten(self._key)
        if self._names and key_of(member.name) != self._key:
            raise SampleError(Reason.INVALID_SAMPLE, f"there is {name} among the members of {key}")
        if member.is_cut:
            raise SampleError(Reason.INVALID_SAMPLE, f"the archive ends within {name}")
        if member.problem and end in (*TEXTS, *PICTURES, *VIDEOS):
            raise SampleError(Reason.INVALID_SAMPLE, f"{name} {member.problem}")
        if member.name in self._names:
            raise SampleError(
                Reason.INVALID_SAMPLE,
                f"{name} is in the archive twice; fix: name each sample differently, or if one replaces the "
                "other, unpack the archive and pack it again, which keeps the last",
            )
        if end in self._texts:
            raise SampleError(
                Reason.INVALID_SAMPLE,
                f"{shorten(self._texts[end][1])} and {name} are two texts of the key {key}, which ends at the "
                f"first dot; fix: rename the members of each sample, such as {shorten(_with_one_dot(member.name))}",
            )


def _with_one_dot(name: str) -> str:
    """A name of another key: its stem without dots."""
    folder, name = os.path.split(name)
    stem, end = os.path.splitext(name)
    return os.path.join(folder, stem.replace(".", "_") + end)


def _place(runs: Runs, numbers: np.ndarray, line: int) -> Place:
    starts, ends = runs.starts[numbers], runs.ends[numbers]
    sizes = np.minimum(ends - starts, MAX_BYTES)
    (start, size), *more = zip(starts.tolist(), sizes.tolist())
    return Place(start, size, line, tuple(more))


def _check_complete(runs: Runs, numbers: np.ndarray) -> None:
    """Raise SampleError for a sample that is too large, or may have lost a member because the archive is damaged."""
    size = int((runs.ends[numbers] - runs.starts[numbers]).max())
    if size > MAX_BYTES:
        raise SampleError(Reason.INVALID_SAMPLE, f"a sample of {size} bytes; the maximum is {MAX_BYTES}")
    if runs.damage and numbers[-1] == len(runs.keys) - 1:
        raise _damaged(runs)
    # Where samples have several runs, one with a single run may have had its others in the damaged rest.
    if runs.damage and runs.is_scattered and len(numbers) == 1:
        raise SampleError(
            Reason.INVALID_SAMPLE, f"a member may be lost: the archive can't be read to its end: {runs.damage}"
        )


def _damaged(runs: Runs) -> SampleError:
    return SampleError(Reason.INVALID_SAMPLE, f"the archive can't be read from here: {runs.damage}")


def _named(value: Any, parts: Sequence[FilePart]) -> list[Any]:
    """Listed media: the member of that name, with any folders or none; any other name is a path.

    If no name matches and there are as many names as members, the list means the members: pictures were renamed.
    """
    listed = transposed(value)
    names = [name for name in (listed if isinstance(listed, list) else [listed]) if name is not None]
    members = {os.path.normpath(part.name): part for part in parts}
    by_base = {os.path.basename(path): part for path, part in members.items()}
    bases = {path: os.path.basename(path) for path in map(os.path.normpath, filter(_is_text, names))}
    if len(names) == len(parts) and by_base.keys().isdisjoint(bases.values()):
        return sorted(parts, key=lambda part: natural_key(part.name))
    counts = Counter(bases.values())  # Of two folders with one file name, neither is that of the member.
    known = {path: by_base[base] for path, base in bases.items() if base in by_base and counts[base] == 1} | members
    return [known.get(os.path.normpath(name), name) if _is_text(name) else name for name in names]


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)
