"""What the headers of media files hold, kept on disk by file, size and time, so that each is opened once.

All sources, stages, runs and nodes share the facts: the size of a picture, the frames and the rate of a video. A fact
takes about 26 bytes. Segments, files of sorted facts that never change (SQLite tables), are added by any process, and
several of them are merged into one, so that a folder holds a few dozen for any number of media files. Nothing is locked
for reading, and little memory is used. The store may lose facts at any time; a header without a fact is read again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import heapq
import itertools
import logging
import math
import operator
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from longvita.data.media.media_file import FileIdentity, MediaFile, place_of

Key = bytes
Facts = tuple[int, Any]
"""Width and height of a picture, pixels; frames of a video and their rate, None for a folder of frames."""
Row = tuple[Key, int, Any]
Source = TypeVar("Source", bound=MediaFile)
VERSION = 2
"""Increased when the facts of a file change: its segments have other names."""
SEGMENT = re.compile(rf"(\d+)-(\d+)-.*\.facts{VERSION}")
"""Name of a segment: its level, the time of its newest facts, and its writer."""
MERGED = 8
"""Segments of one level that are merged into one of the next."""
SAVED = 4096
"""New facts after which a segment is written."""
SETTLED_NS = 2 * 10**9
"""Age of a file or folder before its facts are stored, ns: two changes at once may give it the same time."""
ABANDONED_SECONDS = 24 * 3600
"""Age of a draft whose process has ended, seconds."""

logger = logging.getLogger(__name__)


class FactsStore(contextlib.AbstractContextManager):
    """The facts in a folder, for one process and a limited time: it sees those that others stored before it was opened.

    is_renewed: read each header although it is known.
    """

    def __init__(self, folder: Path, is_renewed: bool = False):
        self._folder, self._is_renewed = folder, is_renewed
        self._new: dict[Key, Facts] = {}
        self._archives: dict[str, FileIdentity] = {}
        self._segments: dict[str, sqlite3.Connection] = {}
        self._refresh()

    def of(self, kind: Literal["picture", "video"], source: Source, read: Callable[[Source], Facts]) -> Facts:
        """Return the facts of a file, by `read` if they are not known. Raises as `read`."""
        identity = self._identity(source)
        if identity is None:
            return read(source)
        key = _key(kind, identity)
        if (known := self._find(key)) is not None:
            return known
        is_settled = _is_settled(identity)
        found = read(source)
        if is_settled and _is_final(identity, found):
            self._new[key] = found
        return found

    def save(self, least: int = 1) -> None:
        """Write the new facts if there are at least so many, and merge segments; an error of the disk loses them."""
        if len(self._new) < least:
            return
        rows = sorted((key, *facts) for key, facts in self._new.items())
        self._new = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_segment(self._folder, 0, time.time_ns(), rows)
            _merge_levels(self._folder)
        except (OSError, sqlite3.Error) as error:
            logger.warning("facts of media files cannot be stored in %s: %s", self._folder, error)
        self._refresh()

    def __exit__(self, *_error: object) -> None:
        self.save()
        for segment in self._segments.values():
            segment.close()

    def _identity(self, source: MediaFile) -> FileIdentity | None:
        """The identity of a file; None if it has none, or is in memory."""
        path, part = place_of(source)
        with contextlib.suppress(OSError):
            if path is not None and not part:
                return FileIdentity.of(path)
            if path is not None:
                if path not in self._archives:  # It may be at a remote store, and holds many.
                    self._archives[path] = FileIdentity.of(path)
                return self._archives[path].part(part)
        return None

    def _find(self, key: Key) -> Facts | None:
        if key in self._new:
            return self._new[key]
        for name, segment in () if self._is_renewed else list(self._segments.items()):
            try:
                found = segment.execute("SELECT first, second FROM facts WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                _discard_damaged(self._folder / name, error)
                self._segments.pop(name).close()
                continue
            if found is not None:
                return found
        return None

    def _refresh(self) -> None:
        """Open the segments that there are, the newest first."""
        names = segment_names(self._folder)
        for name in self._segments.keys() - set(names):
            self._segments.pop(name).close()
        before, self._segments = self._segments, {}
        for name in names:
            with contextlib.suppress(sqlite3.Error):  # Another process has just merged it.
                self._segments[name] = before.get(name) or _open(self._folder / name)


def _key(kind: str, identity: FileIdentity) -> Key:
    """Twelve bytes: files of one folder lie next to each other, and so in few pages of a segment."""
    texts = os.path.dirname(identity.path), f"{kind}\0{identity.path}\0{identity.size}\0{identity.mtime_ns}"
    hashes = (
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size)
        for text, size in zip(texts, (4, 8), strict=True)
    )
    return b"".join(one.digest() for one in hashes)


def _is_settled(identity: FileIdentity) -> bool:
    """Whether a change of the file from now on changes its identity."""
    return not identity.mtime_ns or time.time_ns() - identity.mtime_ns > SETTLED_NS


def _is_final(identity: FileIdentity, facts: Facts) -> bool:
    """Whether facts can be stored: a remote folder changes without its identity, and SQLite has no NaN."""
    return bool(identity.mtime_ns) if facts[1] is None else not math.isnan(facts[1])


# ---- segments


def segment_names(folder: Path) -> list[str]:
    """The names of the segments in a folder, the newest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(filter(SEGMENT.fullmatch, os.listdir(folder)), key=_time_of, reverse=True)
    return []


def write_segment(folder: Path, level: int, newest: int, rows: Iterable[Row]) -> None:
    """Write a segment of rows in ascending order of their keys; of equal keys, the first one stays."""
    name = f"{level}-{newest}-{socket.gethostname()}.{os.getpid()}.{time.time_ns()}.facts{VERSION}"
    draft = folder / f".{name}.draft"
    with contextlib.closing(_connect(draft, "mode=rwc&nolock=1")) as table:
        # No other process opens a draft, and a crash of the machine may lose it.
        table.execute("PRAGMA journal_mode = OFF")
        table.execute("PRAGMA synchronous = OFF")
        table.execute("CREATE TABLE facts (key BLOB PRIMARY KEY, first, second) WITHOUT ROWID")
        table.execute("BEGIN")
        table.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?, ?)", rows)
        table.execute("COMMIT")
    os.replace(draft, folder / name)


def _open(segment: Path) -> sqlite3.Connection:
    return _connect(segment, "mode=ro&immutable=1")  # Without locks, which network file systems may lack.


def _connect(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)


def _time_of(name: str) -> int:
    return int(name.split("-")[1])


def _discard_damaged(segment: Path, error: sqlite3.Error) -> None:
    """Delete a segment that is no table of facts, unless reading failed for another reason."""
    if not isinstance(error, sqlite3.OperationalError) or "no such table" in str(error):
        logger.warning("%s is damaged (%s): the headers of its files are read again", segment, error)
        segment.unlink(missing_ok=True)


def _merge_levels(folder: Path) -> None:
    """Merge the segments of each level that has many, unless another process does."""
    with _merging(folder) as is_alone:
        while is_alone and (full := _full_level(folder)) is not None:
            level, names = full
            with contextlib.ExitStack() as stack:
                segments = [stack.enter_context(contextlib.closing(_open(folder / name))) for name in names]
                rows = heapq.merge(*map(_rows, segments, names, itertools.repeat(folder)), key=operator.itemgetter(0))
                write_segment(folder, level + 1, _time_of(names[0]), rows)
            for name in names:
                (folder / name).unlink(missing_ok=True)


def _full_level(folder: Path) -> tuple[int, list[str]] | None:
    """The lowest level with many segments, and these, the newest first."""
    levels: dict[int, list[str]] = {}
    for name in segment_names(folder):
        levels.setdefault(int(name.split("-")[0]), []).append(name)
    full = (level for level, names in sorted(levels.items()) if len(names) >= MERGED)
    return next(((level, levels[level]) for level in full), None)


def _rows(segment: sqlite3.Connection, name: str, folder: Path) -> Iterator[Row]:
    """The rows of a segment up to its end or to a damage."""
    try:
        yield from segment.execute("SELECT key, first, second FROM facts ORDER BY key")
    except sqlite3.Error as error:
        _discard_damaged(folder / name, error)


@contextlib.contextmanager
def _merging(folder: Path) -> Iterator[bool]:
    """Hold the lock of merges; yields whether no other process merges. Without locks, two only do the same work."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        _remove_abandoned(folder)
        yield True


def _remove_abandoned(folder: Path) -> None:
    """Delete the drafts of processes that ended while they wrote them."""
    for draft in folder.glob(".*.draft"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > ABANDONED_SECONDS:
                draft.unlink()
