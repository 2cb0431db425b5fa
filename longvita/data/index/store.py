"""Indexes on disk: a folder for each data file, made once, opened by mapping, made anew where its file changed.

What a folder holds: meta.json, and beside it the columns and the entries of what was set aside, with the number of
their edition in their names. A new edition is written beside the old one and meta.json replaced last, so a process
that has the old one open keeps it, and nobody ever sees half of one.
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
from longvita.data.index.build import PART_BYTES, UNREADABLE, IndexSettings, Piece
from longvita.data.index.columns import LEAST_MAPPED, FileIndex, join, piece_of
from longvita.data.index.quarantined import QuarantinedEntries, write_quarantined
from longvita.data.index.worker_processes import IndexProcesses
from longvita.data.storage import remote
from longvita.process_limits import open_more_files

VERSION = 3
"""Raised when the files' contents change."""
META = "meta.json"
COLUMNS = ("rows", "media", "rates")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexProgress:
    """How far the index of a file is, of the parts that need work."""

    done: int
    """Units of the parts that are done: bytes, or whatever the format's parts count."""
    whole: int
    """Units of all of them."""
    samples: int
    """Samples of the parts that are done and can be used."""
    quarantined: int
    """Those that can't."""


Report = Callable[[IndexProgress], None]


def _say_nothing(_: IndexProgress) -> None:
    """For those who do not ask how far it is."""


@dataclass(frozen=True)
class IndexJob:
    """What is needed beside a data file to index it."""

    processes: IndexProcesses
    settings: IndexSettings
    cache: Path
    """Folder that holds the indexes' folders."""
    part_bytes: int = PART_BYTES

    def folder(self, path: str) -> Path:
        """The index's folder: another one for another tokenizer, media folder, format or choice of columns."""
        place = path if remote.is_remote(path) else str(Path(path).resolve())
        about = {"version": VERSION, "path": place, "tokenizer": self.processes.template.tokenizer.fingerprint}
        text = json.dumps(about | dataclasses.asdict(self.settings))
        return self.cache / f"{Path(place).stem}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_index(path: str | Path, job: IndexJob, progress: Report = _say_nothing) -> FileIndex:
    """The index of a data file, from the cache folder or made and put there.

    A file that changed since then is indexed anew where its bytes differ: a grown one at its end. Several processes may
    ask at once: the first one works, the others wait for it. `progress` is called after each part that needed work.
    Raises DataError if there is no such file.
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
                _bring_up_to_date(path, job, folder, state, _last_pieces(folder), drafts, progress)
    try:
        return open_edition(folder)
    except UNREADABLE as error:
        logger.warning("the index of %s is damaged (%s: %s) and is made anew", path, type(error).__name__, error)
        forget_index(path, job)
        with _locked(folder) as drafts:
            _bring_up_to_date(path, job, folder, state, [], drafts, progress)
        return open_edition(folder)


def renew_index(path: str | Path, job: IndexJob, lines: Set[int]) -> None:
    """Makes the parts of an index that hold these lines anew, though their bytes are the same: media were mended."""
    path = str(path)
    load_index(path, job)
    folder = job.folder(path)
    with _locked(folder) as drafts:
        doubted = {part for part, own in _lines_of_parts(folder) if not lines.isdisjoint(own)}
        trusted = [piece for piece in _last_pieces(folder) if piece.part not in doubted]
        # What an interrupted pass left may be from before the media were mended.
        shutil.rmtree(drafts, ignore_errors=True)
        _bring_up_to_date(path, job, folder, remote.state(path), trusted, drafts)


def forget_index(path: str | Path, job: IndexJob) -> None:
    """Has the index of a data file made anew when it is asked for next, whatever is there."""
    folder = job.folder(str(path))
    if folder.exists():
        with _locked(folder) as drafts:
            shutil.rmtree(drafts, ignore_errors=True)
            (folder / META).unlink(missing_ok=True)


def lines_of_parts(path: str | Path, job: IndexJob) -> list[tuple[Part, range]]:
    """The parts of a data file and the numbers of the lines of each, by its index, which is made where it is not."""
    load_index(path, job)
    return _lines_of_parts(job.folder(str(path)))


def _lines_of_parts(folder: Path) -> list[tuple[Part, range]]:
    parts = _meta(folder)["parts"]
    bounds = itertools.pairwise(itertools.accumulate((about["lines"] for about in parts), initial=1))
    return [(Part(about["start"], about["end"]), range(*lines)) for about, lines in zip(parts, bounds)]


def size_of(path: str | Path) -> int:
    """Bytes of a data file, or of all files of a folder."""
    return remote.state(str(path))[1]


def _bring_up_to_date(
    path: str,
    job: IndexJob,
    folder: Path,
    state: list[Any],
    last: Sequence[Piece],
    drafts: Path,
    progress: Report = _say_nothing,
) -> None:
    """Writes a new edition: the pieces of `last` whose bytes are the same, and new ones for the other parts.

    Those lie in the folder `drafts` until all are there.
    """
    start, meta, format = time.monotonic(), _meta(folder), job.settings.make_format()
    kept = {piece.part: piece for piece in last}
    parts = format.parts(path, job.part_bytes)
    pieces = {part: kept[part] for part in parts if part in kept and kept[part].digest == format.digest(path, part)}
    wanted = [part for part in parts if part not in pieces]
    if meta and wanted and meta["state"] != state:
        is_as_it_was = all(part in pieces or format.digest(path, part) == kept[part].digest for part in kept)
        what = "grew" if is_as_it_was else "changed"
        logger.warning("%s %s since it was indexed: %d of %d parts anew", path, what, len(wanted), len(parts))
    made, whole = [], sum(part.end - part.start for part in wanted)
    for piece in job.processes.index(path, wanted, job.settings, drafts):
        pieces[piece.part] = piece
        made.append(piece)
        progress(_progress(made, whole))
    index = write_edition(folder, [pieces[part] for part in parts], state, meta.get("edition", 0) + 1)
    shutil.rmtree(drafts, ignore_errors=True)
    logger.info(
        "indexed %s: %d samples, %d set aside, %.1f s", path, len(index), len(index.broken), time.monotonic() - start
    )


def _progress(made: Sequence[Piece], whole: int) -> IndexProgress:
    return IndexProgress(
        done=sum(piece.part.end - piece.part.start for piece in made),
        whole=whole,
        samples=sum(len(piece.index) for piece in made),
        quarantined=sum(len(piece.index.broken) for piece in made),
    )


def _last_pieces(folder: Path) -> list[Piece]:
    """The pieces of the edition that is there."""
    meta = _meta(folder)
    if not meta:
        return []
    try:
        index = open_edition(folder)
    except UNREADABLE:
        return []
    pieces, row, line = [], 0, 1
    for about in meta["parts"]:
        rows, lines = range(row, row + about["rows"]), range(line, line + about["lines"])
        part = Part(about["start"], about["end"])
        pieces.append(Piece(part, about["digest"], about["lines"], piece_of(index, rows, lines)))
        row, line = rows.stop, lines.stop
    return pieces


def write_edition(folder: Path, pieces: Sequence[Piece], state: list[Any], edition: int) -> FileIndex:
    """Writes an edition of the pieces of a file, in order; `state` is the file's, see `load_index`."""
    lines_before = itertools.accumulate((piece.lines for piece in pieces), initial=0)
    index = join([(piece.index, before) for piece, before in zip(pieces, lines_before)])
    for name in COLUMNS:
        _put(folder / f"{name}-{edition}.npy", functools.partial(np.save, arr=getattr(index, name)))
    _put(folder / f"broken-{edition}.jsonl", functools.partial(write_quarantined, entries=index.broken))
    parts = [
        {"start": p.part.start, "end": p.part.end, "digest": p.digest, "lines": p.lines, "rows": len(p.index)}
        for p in pieces
    ]
    meta = {"edition": edition, "state": state, "quarantined": len(index.broken), "parts": parts}
    _put(folder / META, lambda file: file.write(json.dumps(meta).encode()))
    # The edition before stays: a process may have read its number and not opened it yet.
    for name in (*(f"{column}-{edition - 2}.npy" for column in COLUMNS), f"broken-{edition - 2}.jsonl"):
        (folder / name).unlink(missing_ok=True)
    return index


def _put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that others see whole or not at all, a machine that goes down among them.

    A process without a lock may have the one of this name mapped, and keeps it.
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
    return FileIndex(**columns, broken=QuarantinedEntries(folder / f"broken-{edition}.jsonl", meta["quarantined"]))


def _column(path: Path) -> np.ndarray:
    """Mapped where ranks gain by sharing it: one that is mapped keeps a file open, and those are limited."""
    column = np.load(path, mmap_mode="r" if path.stat().st_size >= LEAST_MAPPED else None)
    column.flags.writeable = False
    return column


def _meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / META).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _own_name() -> str:
    """Tells this process from all others that may write to the same file system."""
    return f"{socket.gethostname()}.{os.getpid()}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Holds an index's lock; gives the folder for pieces, where the next process finds those of an interrupted pass.

    Where the file system has no locks, several processes may do the same work; each then has a folder of its own.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield folder / f"parts.{_own_name()}"
        else:
            yield folder / "parts"
