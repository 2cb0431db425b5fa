"""Editions of an index on disk, and the lock of their folder.

A folder holds meta.json, the columns and the quarantined entries; the names of the latter contain the number of their
edition. A new edition is written next to the old one and meta.json is replaced last. Therefore a process that has the
old edition open keeps it, and no process sees an incomplete one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longvita.data.formats.base import Part
from longvita.data.index.build import UNREADABLE, IndexPart
from longvita.data.index.columns import (
    COLUMNS,
    MIN_MAPPED_BYTES,
    FileIndex,
    QuarantinedEntries,
    join_parts,
    slice_index,
    sum_unused,
)
from longvita.data.storage.retries import with_retries
from longvita.process_limits import open_more_files

META = "meta.json"
DRAFTS = "parts"
"""Folder of the parts until all are indexed."""


def saved_parts(folder: Path) -> list[IndexPart]:
    """The parts of the newest edition; none if there is no readable one."""
    index = find_edition(folder)
    if isinstance(index, Exception):
        return []
    parts, row = [], 0
    for about, (part, lines) in zip(read_meta(folder)["parts"], lines_of_edition(folder)):
        rows = range(row, row + about["rows"])
        parts.append(IndexPart(part, about["digest"], about["lines"], slice_index(index, rows, lines, about["unused"])))
        row = rows.stop
    return parts


def lines_of_edition(folder: Path) -> list[tuple[Part, range]]:
    """The parts of the newest edition and the line numbers of each."""
    parts = read_meta(folder)["parts"]
    bounds = itertools.pairwise(itertools.accumulate((about["lines"] for about in parts), initial=1))
    return [(Part(about["start"], about["end"]), range(*lines)) for about, lines in zip(parts, bounds)]


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
    meta = read_meta(folder)
    edition = meta["edition"]
    columns = {name: _column(folder / f"{name}-{edition}.npy") for name in COLUMNS}
    quarantined = QuarantinedEntries(folder / f"quarantined-{edition}.jsonl", meta["quarantined"])
    unused = sum_unused(about["unused"] for about in meta["parts"])
    return FileIndex(**columns, quarantined=quarantined, unused=unused)


def find_edition(folder: Path) -> FileIndex | Exception:
    """The newest edition of an index, or why it is damaged. Raises OSError if the disk fails again after retries."""

    def read() -> FileIndex | Exception:
        try:
            return open_edition(folder)
        except UNREADABLE as error:
            return error

    return with_retries(read, str(folder))


def _column(path: Path) -> np.ndarray:
    """Map a large column, which ranks share, and read a small one: a mapping holds one of a limited number of files."""
    column = np.load(path, mmap_mode="r" if path.stat().st_size >= MIN_MAPPED_BYTES else None)
    column.flags.writeable = False
    return column


def is_current(folder: Path, state: list[Any]) -> bool:
    """Whether there is an index of the file in this state."""
    return read_meta(folder).get("state") == state


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json holds; empty if it is missing or damaged."""
    try:
        return json.loads((folder / META).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _own_name() -> str:
    """A name that is unique among the processes that may write to the same file system."""
    return f"{socket.gethostname()}.{os.getpid()}"


@contextlib.contextmanager
def locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[Path]:
    """Hold an index's lock; yields the folder for drafts of parts, where the next process resumes an interrupted pass.

    how: as for flock. On a file system without locks, several processes may do the same work, each with a folder of its
    own. Raises BlockingIOError for a lock that another process holds, if `how` is not to wait for it.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            raise
        except OSError:
            yield folder / f"{DRAFTS}.{_own_name()}"
        else:
            yield folder / DRAFTS
