"""Indexes on disk: a folder for each data file, made once, opened by mapping, made anew where its file changed.

What a folder holds: meta.json, and beside it the columns and the entries of what was set aside, with the number of
their edition in their names. A new edition is written beside the old one and meta.json replaced last, so a process
that has the old one open keeps it, and nobody ever sees half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvita.data import remote
from longvita.data.errors import DataError
from longvita.data.formats.base import Part
from longvita.data.index.build import PART_BYTES, IndexSettings, Piece, index_parts
from longvita.data.index.columns import FileIndex, join, piece_of
from longvita.data.quarantine import SetAside
from longvita.data.template import ChatTemplate

VERSION = 2
"""Raised when the files' contents change."""
META = "meta.json"
COLUMNS = ("rows", "media", "rates")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexJob:
    """What is needed beside a data file to index it."""

    template: ChatTemplate
    settings: IndexSettings
    cache: Path
    """Folder that holds the indexes' folders."""
    processes: int = 1
    """Processes that share the parts of a file."""
    part_bytes: int = PART_BYTES

    def folder(self, path: str) -> Path:
        """The index's folder: another one for another tokenizer, media folder, format or choice of columns."""
        place = path if remote.is_remote(path) else str(Path(path).resolve())
        about = {"version": VERSION, "path": place, "tokenizer": self.template.tokenizer.fingerprint}
        text = json.dumps(about | dataclasses.asdict(self.settings))
        return self.cache / f"{Path(place).stem}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_index(
    path: str | Path, job: IndexJob, progress: Callable[[int, int], None] = lambda done, whole: None
) -> FileIndex:
    """The index of a data file, from the cache folder or made and put there.

    A file that changed since then is indexed anew where its bytes differ: a grown one at its end. Several processes may
    ask at once: the first one works, the others wait for it. `progress` is called with the units done and those of all
    parts that need work. Raises DataError if there is no such file.
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
        with _locked(folder / "lock"):
            if _meta(folder).get("state") != state:
                _bring_up_to_date(path, job, folder, state, progress)
    return _open(folder, _meta(folder)["edition"])


def _bring_up_to_date(
    path: str, job: IndexJob, folder: Path, state: list[Any], progress: Callable[[int, int], None]
) -> None:
    """Writes a new edition: the pieces of the last one whose bytes are the same, and new ones for the other parts."""
    start, meta, format = time.monotonic(), _meta(folder), job.settings.make_format()
    kept = {piece.part: piece for piece in _last_pieces(folder, meta)}
    parts = format.parts(path, job.part_bytes)
    pieces = {part: kept[part] for part in parts if part in kept and kept[part].digest == format.digest(path, part)}
    wanted = [part for part in parts if part not in pieces]
    if meta:
        what = "grew" if all(part in pieces for part in list(kept)[:-1]) else "changed"
        logger.warning("%s %s since it was indexed: %d of %d parts anew", path, what, len(wanted), len(parts))
    whole, done = sum(part.end - part.start for part in wanted), 0
    for piece in index_parts(path, wanted, job.template, job.settings, folder / "parts", job.processes):
        pieces[piece.part] = piece
        done += piece.part.end - piece.part.start
        progress(done, whole)
    index = _write(folder, [pieces[part] for part in parts], state, meta.get("edition", 0) + 1)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    logger.info(
        "indexed %s: %d samples, %d set aside, %.1f s", path, len(index), len(index.broken), time.monotonic() - start
    )


def _last_pieces(folder: Path, meta: dict[str, Any]) -> list[Piece]:
    if not meta:
        return []
    index = _open(folder, meta["edition"])
    pieces, row, line = [], 0, 1
    for about in meta["parts"]:
        rows, lines = range(row, row + about["rows"]), range(line, line + about["lines"])
        part = Part(about["start"], about["end"])
        pieces.append(Piece(part, about["digest"], about["lines"], piece_of(index, rows, lines)))
        row, line = rows.stop, lines.stop
    return pieces


def _write(folder: Path, pieces: Sequence[Piece], state: list[Any], edition: int) -> FileIndex:
    lines_before = itertools.accumulate((piece.lines for piece in pieces), initial=0)
    index = join([(piece.index, before) for piece, before in zip(pieces, lines_before)])
    for name in COLUMNS:
        np.save(folder / f"{name}-{edition}.npy", getattr(index, name))
    (folder / f"broken-{edition}.jsonl").write_text("".join(f"{entry.to_json()}\n" for entry in index.broken))
    parts = [
        {"start": p.part.start, "end": p.part.end, "digest": p.digest, "lines": p.lines, "rows": len(p.index)}
        for p in pieces
    ]
    draft = folder / f".{META}.{os.getpid()}"
    draft.write_text(json.dumps({"edition": edition, "state": state, "parts": parts}))
    os.replace(draft, folder / META)
    # The edition before stays: a process may have read its number and not opened it yet.
    for file in folder.glob(f"*-{edition - 2}.*"):
        file.unlink()
    return index


def _open(folder: Path, edition: int) -> FileIndex:
    columns = {name: np.load(folder / f"{name}-{edition}.npy", mmap_mode="r") for name in COLUMNS}
    broken = (folder / f"broken-{edition}.jsonl").read_text().splitlines()
    return FileIndex(**columns, broken=tuple(SetAside.from_json(line) for line in broken))


def _meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / META).read_text())
    except (FileNotFoundError, ValueError):
        return {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file. Where the file system has no locks, two processes may do the same work; the result is one."""
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
