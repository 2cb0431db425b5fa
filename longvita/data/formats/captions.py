"""Captions: a folder of pictures or videos with a text file for each, or with one list of all captions.

The list is metadata.jsonl (one object a line, with "file_name" and the keys of a record) or captions.csv (one row each
below a header). Without a list, each picture or video has a .txt or .json file of the same stem next to it.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.base import Part, Place, digest_bytes
from longvita.data.formats.folders import CAPTION_LISTS
from longvita.data.formats.jsonl import Jsonl, lines_of
from longvita.data.formats.record import FormatOptions, record_sample
from longvita.data.formats.text import decode, parse_object
from longvita.data.formats.wrong_format import wrong_format
from longvita.data.media.media_file import FilePart, leads_outside
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.errors import shorten

QUOTED = re.compile(rb'"(?:[^"]++|"")*+"')
"""A field in quotes."""
REST_OF_QUOTED = re.compile(rb'(?:[^"]++|"")*+"')
"""The rest of a quoted field that began in an earlier line."""
FILE_NAMES = ("file_name", "image", "video", "path", "file")
"""Names of a list's column with the path of the picture or video below the folder."""
TEXTS = ("txt", "json")
"""Suffixes of the text file of a picture or video; the first that exists is used."""
FOLDERS_KEPT = 64
"""Folders whose listings are cached: about 100 bytes for each picture."""
ROW_BYTES = 1 << 20
"""Longest row of a table, bytes: an unclosed quote would otherwise include all rows that follow."""
FILE_BYTES = 4096
"""Size of a text file when parts are sized, bytes: the cost of opening it."""


class Captions:
    """Places and parts count bytes of the list, or pictures and videos in the order of their names."""

    name = "captions"

    def __init__(self, options: FormatOptions):
        self.options = options

    def problem(self, path: str) -> str | None:
        """What the beginning of its list shows."""
        listing = _list_of(path)
        found = wrong_format(listing, ending(listing)) if listing else None
        return f"{listing}: {found}" if found else None

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts of metadata.jsonl as of JSONL; a table is one part, because a value may contain line ends.

        Without a list, parts have equal numbers of files. Raises DataError if the path is no folder.
        """
        _entries_of.cache_clear()
        if not remote.is_folder(path):
            raise DataError(f"{path} is no folder: captions are a folder of pictures with their texts")
        listing = _list_of(path)
        if listing is None:
            count, step = len(_entries_of(path)), max(1, part_bytes // FILE_BYTES)
            return [Part(start, min(start + step, count)) for start in range(0, count, step)]
        if listing.endswith(".jsonl"):
            return Jsonl(self.options).parts(listing, part_bytes)
        size = remote.size(listing)
        return [Part(0, size)] if size else []

    def digest(self, path: str, part: Part) -> str:
        """Digest of the list's bytes, or of the names and texts."""
        listing = _list_of(path)
        if listing is not None:
            return digest_bytes(listing, part)
        digest = hashlib.blake2b(digest_size=16)
        for name in _entries_of(path)[part.start : part.end]:
            digest.update(repr((name, _text_of(path, name))).encode())
        return digest.hexdigest()

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each line, row, or picture or video."""
        for place, content in self._contents(path, part):
            try:
                yield place, self._sample(path, place, content) if content is None or content.strip() else None
            except SampleError as error:
                yield place, error

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """The sample of a line, a row, or a picture or video."""
        listing = _list_of(path)
        if listing is None:
            return self._sample(path, place, None)
        with remote.open_file(listing) as file:
            file.seek(place.offset)
            return self._sample(path, place, file.read(place.size))

    def _contents(self, path: str, part: Part) -> Iterator[tuple[Place, bytes | None]]:
        """Each place and its bytes in the list, None without a list."""
        listing = _list_of(path)
        if listing is None:
            places = enumerate(range(part.start, part.end), start=1)
            yield from ((Place(offset, 0, number), None) for number, offset in places)
            return
        is_table = listing.endswith(".csv")
        rows = itertools.islice(_rows_of(listing, part), 1, None) if is_table else lines_of(listing, part)
        for number, (offset, content) in enumerate(rows, start=1):
            yield Place(offset, len(content), number), content

    def _sample(self, path: str, place: Place, content: bytes | None) -> Sample:
        if content is None:
            names = _entries_of(path)
            if place.offset >= len(names):
                raise SampleError(Reason.INVALID_SAMPLE, f"the folder has {len(names)} pictures and videos now")
            name = names[place.offset]
            if ending(name) in TEXTS:
                detail = f"has no picture or video of that name next to it (.{', .'.join((*PICTURES, *VIDEOS))})"
                raise SampleError(Reason.INVALID_SAMPLE, f"{shorten(name)} {detail}")
            record = _text_record(path, name)
        else:
            listing = _list_of(path) or ""
            record = _csv_record(listing, content) if listing.endswith(".csv") else parse_object(content)
            key = next((key for key in FILE_NAMES if isinstance(record.get(key), str)), "")
            name = record.pop(key, "")
            if not name:
                raise SampleError(Reason.INVALID_SAMPLE, f"no path under any of {', '.join(FILE_NAMES)}")
        return record_sample(_with_media_file(record, path, name, self.options), self.options)


def _with_media_file(record: dict[str, Any], folder: str, name: str, options: FormatOptions) -> dict[str, Any]:
    """The record with its one picture or video, a file of the folder."""
    if leads_outside(name, folder):
        raise SampleError(
            Reason.OUTSIDE_MEDIA_ROOT, f"{shorten(name)} leads outside its folder {folder}; move it there"
        )
    replaced = {*options.names_of("images"), *options.names_of("videos")}
    kept = {key: value for key, value in record.items() if key not in replaced}
    kind = "videos" if ending(name) in VIDEOS else "images"
    return {**kept, options.names_of(kind)[0]: FilePart(remote.join(folder, name), name=name)}


def _list_of(folder: str) -> str | None:
    """Path of the folder's list of captions, None if it has none."""
    return next((path for name in CAPTION_LISTS if remote.exists(path := remote.join(folder, name))), None)


@functools.lru_cache(maxsize=FOLDERS_KEPT)
def _entries_of(folder: str) -> tuple[str, ...]:
    """Pictures and videos of a folder and its subfolders, and texts without either, in the order of their names.

    Cached since `parts`; if they change later, the index's hash of their names differs.
    """
    names = remote.files_below(folder)
    media = [name for name in names if ending(name) in (*PICTURES, *VIDEOS)]
    stems = {os.path.splitext(name)[0] for name in media}
    texts = [name for name in names if ending(name) in TEXTS and os.path.splitext(name)[0] not in stems]
    return tuple(sorted(media + texts))


def _text_of(folder: str, name: str) -> tuple[str, bytes] | None:
    """Name and bytes of the text file of a picture or video."""
    for kind in TEXTS:
        text = f"{os.path.splitext(name)[0]}.{kind}"
        with contextlib.suppress(FileNotFoundError), remote.open_file(remote.join(folder, text)) as file:
            return text, file.read()
    return None


def _text_record(folder: str, name: str) -> dict[str, Any]:
    found = _text_of(folder, name)
    if found is None:
        raise SampleError(Reason.NO_ANSWER, f"{shorten(name)} has no .txt or .json file next to it")
    text, content = found
    return {"caption": decode(content, text).strip()} if text.endswith(".txt") else parse_object(content, text)


def _rows_of(path: str, part: Part) -> Iterator[tuple[int, bytes]]:
    """First byte and bytes of each row of a table, the header first. Lines are joined while a quote is open.

    A row of more than ROW_BYTES, or without an end, is one line: its open quote is an error.
    """
    pending = collections.deque[tuple[int, bytes]]()
    lines = lines_of(path, part)
    while pending or (pending := collections.deque(itertools.islice(lines, 1))):
        length, size, is_open = 0, 0, False
        while True:
            if length == len(pending):
                more = next(lines, None)
                if more is None:
                    break
                pending.append(more)
            line = pending[length][1]
            length, size, is_open = length + 1, size + len(line), _is_open_after(line, is_open)
            if not is_open or size > ROW_BYTES:
                break
        row = [pending.popleft() for _ in range(1 if is_open else length)]
        yield row[0][0], b"".join(line for _, line in row)


def _is_open_after(line: bytes, is_open: bool) -> bool:
    """Whether a quoted field continues after a line; `is_open`: whether one continues into it.

    A quote opens a field only at its first character (RFC 4180).
    """
    at = 0
    while at >= 0:
        if is_open or line.startswith(b'"', at):
            rest = (REST_OF_QUOTED if is_open else QUOTED).match(line, at)
            if rest is None:
                return True
            is_open, at = False, rest.end()
        comma = line.find(b",", at)
        at = comma + 1 if comma >= 0 else -1
    return False


def _csv_record(path: str, content: bytes) -> dict[str, Any]:
    names, values = _csv_names(path, json.dumps(remote.state(path))), _parse_row(content)
    if len(values) != len(names):
        raise SampleError(Reason.INVALID_SAMPLE, f"{len(values)} values in a row under {len(names)} names")
    return dict(zip(names, values))


@functools.lru_cache(maxsize=8)
def _csv_names(path: str, state: str) -> tuple[str, ...]:
    rows = _rows_of(path, Part(0, remote.size(path)))
    return tuple(name.strip() for name in _parse_row(next(rows)[1]))


def _parse_row(content: bytes) -> list[str]:
    try:
        return next(csv.reader([decode(content, "the row")], strict=True), [])
    except csv.Error as error:
        raise SampleError(Reason.INVALID_SAMPLE, f"the row is no CSV: {error}") from error
