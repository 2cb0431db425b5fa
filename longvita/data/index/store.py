"""Indexes on disk: a folder for each data file, built once, opened by mapping, rebuilt where the data file changed.

A folder holds meta.json, the columns and the quarantined entries; the names of the latter contain the number of their
edition. A new edition is written next to the old one and meta.json is replaced last. Therefore a process that has the
old edition open keeps it, and no process sees an incomplete one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longvita.data.errors import DataError
from longvita.data.formats.base import Part
from longvita.data.formats.checked import WHOLE_FILE
from longvita.data.index.build import PART_BYTES, UNREADABLE, IndexPart, IndexSettings
from longvita.data.index.columns import (
    COLUMNS,
    MIN_MAPPED_BYTES,
    FileIndex,
    QuarantinedEntries,
    join_parts,
    slice_index,
    sum_unused,
)
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.storage import remote
from longvita.process_limits import open_more_files

VERSION = 7
"""Increased when the contents of the files change."""
META = "meta.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexProgress:
    """Progress over the parts of a file that have to be indexed."""

    done: int
    """Size of the parts that are done, in bytes or in the unit of the format's parts."""
    total: int
    """Size of all of them."""
    quarantined: int
    """Quarantined samples of the parts that are done."""


OnProgress = Callable[[IndexProgress], None]


@dataclass(frozen=True)
class IndexJob:
    """Processes, settings and cache folder for indexing data files."""

    processes: IndexProcessPool
    settings: IndexSettings
    cache: Path
    """Folder of the indexes' folders."""
    part_bytes: int = PART_BYTES

    def folder(self, path: str) -> Path:
        """The folder of a file's index; it differs by tokenizer, media folder, frame rate, format and columns."""
        place = path if remote.is_remote(path) else str(Path(path).resolve())
        about = {"version": VERSION, "path": place, "tokenizer": self.processes.template.tokenizer.fingerprint}
        text = json.dumps(about | dataclasses.asdict(dataclasses.replace(self.settings, packet_tables=None)))
        return self.cache / f"{Path(place).stem}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_index(path: str | Path, job: IndexJob, progress: OnProgress = lambda _: None) -> FileIndex:
    """Load the index of a data file from the cache folder, or build it there.

    Of a file that changed since, only the parts whose bytes differ are indexed again: of a grown file, its end. Several
    processes may call this at once: the first one works, the others wait for it. `progress` is called after each part
    that was indexed. Raises DataError if the file does not exist.
    """
    path = str(path)
    if not remote.exists(path):
        raise DataError(
            f"data file {path} of source {job.settings.source!r} does not exist; see data.data_root and its data_paths"
        )
    folder = job.folder(path)
    state = remote.state(path)
    if _meta(folder).get("state") != state:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as drafts:
            if _meta(folder).get("state") != state:
                _update(path, job, state, _saved_parts(folder), drafts, progress)
    try:
        return open_edition(folder)
    except UNREADABLE as error:
        logger.warning("the index of %s is damaged (%s: %s) and is rebuilt", path, type(error).__name__, error)
        forget_index(path, job)
        with _locked(folder) as drafts:
            _update(path, job, state, [], drafts, progress)
        return open_edition(folder)


def renew_index(path: str | Path, job: IndexJob, lines: Set[int]) -> None:
    """Rebuild the parts of an index that hold these lines, although their bytes are unchanged: media were fixed."""
    path = str(path)
    load_index(path, job)
    folder = job.folder(path)
    with _locked(folder) as drafts:
        stale = {part for part, own in _lines_of_parts(folder) if not lines.isdisjoint(own)}
        kept = [saved for saved in _saved_parts(folder) if saved.part not in stale]
        # Parts of an interrupted pass may be from before the media were fixed.
        shutil.rmtree(drafts, ignore_errors=True)
        _update(path, job, remote.state(path), kept, drafts, lambda _: None)


def forget_index(path: str | Path, job: IndexJob) -> None:
    """Delete the index of a data file, so that the next `load_index` rebuilds it."""
    folder = job.folder(str(path))
    if folder.exists():
        with _locked(folder) as drafts:
            shutil.rmtree(drafts, ignore_errors=True)
            (folder / META).unlink(missing_ok=True)


def lines_of_parts(path: str | Path, job: IndexJob) -> list[tuple[Part, range]]:
    """The parts of a data file and the line numbers of each, from its index, which is built if it is missing."""
    load_index(path, job)
    return _lines_of_parts(job.folder(str(path)))


def _lines_of_parts(folder: Path) -> list[tuple[Part, range]]:
    parts = _meta(folder)["parts"]
    bounds = itertools.pairwise(itertools.accumulate((about["lines"] for about in parts), initial=1))
    return [(Part(about["start"], about["end"]), range(*lines)) for about, lines in zip(parts, bounds)]


def size_of(path: str | Path) -> int:
    """Bytes of a data file, or of all files of a folder."""
    return remote.state(str(path))[1]


def _update(
    path: str, job: IndexJob, state: list[Any], saved: Sequence[IndexPart], drafts: Path, progress: OnProgress
) -> None:
    """Write a new edition: the `saved` parts whose bytes are unchanged, and the others indexed again.

    The latter are in the folder `drafts` until all are done.
    """
    folder = drafts.parent
    start, meta, format = time.monotonic(), _meta(folder), job.settings.make_format()
    old = {one.part: one for one in saved}
    parts = format.parts(path, job.part_bytes)
    indexed = {part: old[part] for part in parts if part in old and old[part].digest == format.digest(path, part)}
    missing = [part for part in parts if part not in indexed]
    if meta and missing and meta["state"] != state:
        # A file that is not of its format any more has no digests of its old parts.
        same = (part in indexed or format.digest(path, part) == old[part].digest for part in old)
        is_longer = WHOLE_FILE not in parts and all(same)
        what = "grew" if is_longer else "changed"
        logger.warning("%s %s since it was indexed: %d of %d parts again", path, what, len(missing), len(parts))
    new, total = [], sum(part.end - part.start for part in missing)
    for one in job.processes.index(path, missing, job.settings, drafts):
        indexed[one.part] = one
        new.append(one)
        progress(
            IndexProgress(
                done=sum(one.part.end - one.part.start for one in new),
                total=total,
                quarantined=sum(len(one.index.quarantined) for one in new),
            )
        )
    index = write_edition(folder, [indexed[part] for part in parts], state, meta.get("edition", 0) + 1)
    shutil.rmtree(drafts, ignore_errors=True)
    seconds = time.monotonic() - start
    logger.info("indexed %s: %d samples, %d quarantined, %.1f s", path, len(index), len(index.quarantined), seconds)


def _saved_parts(folder: Path) -> list[IndexPart]:
    """The parts of the newest edition; none if there is no readable one."""
    try:
        index = open_edition(folder)
    except UNREADABLE:
        return []
    parts, row = [], 0
    for about, (part, lines) in zip(_meta(folder)["parts"], _lines_of_parts(folder)):
        rows = range(row, row + about["rows"])
        parts.append(IndexPart(part, about["digest"], about["lines"], slice_index(index, rows, lines, about["unused"])))
        row = rows.stop
    return parts


def write_edition(folder: Path, parts: Sequence[IndexPart], state: list[Any], edition: int) -> FileIndex:
    """Write an edition of the parts of a data file, in order; `state` is the `remote.state` of that file."""
    lines_before = itertools.accumulate((part.lines for part in parts), initial=0)
    index = join_parts([(part.index, before) for part, before in zip(parts, lines_before)])
    for name in COLUMNS:
        _write_atomically(folder / f"{name}-{edition}.npy", functools.partial(np.save, arr=getattr(index, name)))
    entries = [f"{entry.to_json()}\n".encode() for entry in index.quarantined]
    _write_atomically(folder / f"quarantined-{edition}.jsonl", lambda file: file.writelines(entries))
    about = [
        {
            "start": one.part.start,
            "end": one.part.end,
            "digest": one.digest,
            "lines": one.lines,
            "rows": len(one.index),
            "unused": one.index.unused,
        }
        for one in parts
    ]
    meta = {"edition": edition, "state": state, "quarantined": len(index.quarantined), "parts": about}
    _write_atomically(folder / META, lambda file: file.write(json.dumps(meta).encode()))
    # The previous edition stays: a process may have read its number and not opened it yet.
    for name in (*(f"{column}-{edition - 2}.npy" for column in COLUMNS), f"quarantined-{edition - 2}.jsonl"):
        (folder / name).unlink(missing_ok=True)
    return index


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is complete or absent, also after a crash of the machine.

    A process without a lock that has the old file of this name mapped keeps it.
    """
    draft = path.with_name(f".{path.name}.{_own_name()}")
    with open(draft, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def open_edition(folder: Path) -> FileIndex:
    """The newest edition of an index, mapped from its folder."""
    open_more_files()  # Each mapped column holds its file open, and a mix may have thousands of files.
    meta = _meta(folder)
    edition = meta["edition"]
    columns = {name: _column(folder / f"{name}-{edition}.npy") for name in COLUMNS}
    quarantined = QuarantinedEntries(folder / f"quarantined-{edition}.jsonl", meta["quarantined"])
    unused = sum_unused(about["unused"] for about in meta["parts"])
    return FileIndex(**columns, quarantined=quarantined, unused=unused)


def _column(path: Path) -> np.ndarray:
    """Map a large column, which ranks share, and read a small one: a mapping holds one of a limited number of files."""
    column = np.load(path, mmap_mode="r" if path.stat().st_size >= MIN_MAPPED_BYTES else None)
    column.flags.writeable = False
    return column


def _meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / META).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _own_name() -> str:
    """A name that is unique among the processes that may write to the same file system."""
    return f"{socket.gethostname()}.{os.getpid()}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold an index's lock; yields the folder for drafts of parts, where the next process resumes an interrupted pass.

    On a file system without locks, several processes may do the same work, each with a folder of its own.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield folder / f"parts.{_own_name()}"
        else:
            yield folder / "parts"
