"""Indexes on disk: a folder for each data file, built once, opened by mapping, rebuilt where the data file changed.

All files of a mix are indexed in one pass, by the processes of one machine or by several machines that share the parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvita.data.errors import DataError
from longvita.data.formats.base import Part
from longvita.data.formats.checked import WHOLE_FILE
from longvita.data.index.build import PART_BYTES, IndexPart, IndexSettings
from longvita.data.index.columns import FileIndex
from longvita.data.index.editions import (
    DRAFTS,
    META,
    find_edition,
    is_current,
    lines_of_edition,
    locked,
    open_edition,
    read_meta,
    saved_parts,
    write_edition,
)
from longvita.data.index.process_pool import IndexProcessPool, PartTask
from longvita.data.storage import remote
from longvita.process_limits import open_more_files

VERSION = 8
"""Increased when the contents of the files change."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexProgress:
    """Progress over the parts of data files that have to be indexed."""

    files: int
    """Data files with such parts."""
    done: int
    """Bytes of the parts that are done."""
    total: int
    """Bytes of all of them."""
    quarantined: int
    """Quarantined samples of the parts that are done."""
    processes: int
    """Processes that index."""


OnProgress = Callable[[IndexProgress], None]
"""Called before the first part and after each."""


@dataclass(frozen=True)
class Share:
    """The parts that this process indexes where several processes, on one or more machines, share them."""

    number: int
    """From 0."""
    count: int
    """Processes."""

    def holds(self, file: int, part: int) -> bool:
        """Whether a part is in the share, by the numbers of its file and of the part, so that small files spread."""
        return (file + part) % self.count == self.number


EVERYTHING = Share(0, 1)


@dataclass(frozen=True)
class IndexJob:
    """Processes, settings and cache folder for indexing data files."""

    processes: IndexProcessPool
    settings: IndexSettings
    cache: Path
    """Folder of the indexes' folders."""
    part_bytes: int = PART_BYTES

    def renewed(self) -> IndexJob:
        """A job that reads each header although it is known."""
        known = self.settings.known and dataclasses.replace(self.settings.known, is_renewed=True)
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, known=known))

    def folder(self, path: str) -> Path:
        """The folder of a file's index; it differs by tokenizer, media folder, rate of folders, format and columns."""
        place = path if remote.is_remote(path) else str(Path(path).resolve())
        root = self.settings.media_root
        root = root if remote.is_remote(root) else os.path.abspath(root)
        about = {"version": VERSION, "path": place, "tokenizer": self.processes.template.tokenizer.fingerprint}
        text = json.dumps(about | dataclasses.asdict(dataclasses.replace(self.settings, media_root=root, known=None)))
        return self.cache / f"{Path(place).stem}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_index(path: str | Path, job: IndexJob, progress: OnProgress = lambda _: None) -> FileIndex:
    """Load the index of a data file from the cache folder, or build it there as `update_indexes` does.

    Raises DataError if the file does not exist.
    """
    if not remote.exists(str(path)):
        raise DataError(f"data file {path} does not exist; see data.data_root and the data_paths of its source")
    update_indexes([(str(path), job)], progress)
    return open_index(path, job)


def open_index(path: str | Path, job: IndexJob) -> FileIndex:
    """Open the index of a data file that has one, and rebuild it if it is damaged. Raises OSError if its disk fails."""
    folder = job.folder(str(path))
    found = find_edition(folder)
    if isinstance(found, FileIndex):
        return found
    logger.warning("the index of %s is damaged (%s: %s) and is rebuilt", path, type(found).__name__, found)
    forget_index(path, job, is_damaged=True)
    update_indexes([(str(path), job)])
    return open_edition(folder)


def update_indexes(
    files: Sequence[tuple[str, IndexJob]], progress: OnProgress = lambda _: None, share: Share = EVERYTHING
) -> bool:
    """Index data files that have no index or changed since, in one pass; whether each has its index now.

    Of a file that changed, only the parts whose bytes differ are indexed again: of a grown file, its end. Several
    processes may call this at once with the same files: the first one works, the others wait for it; but processes with
    a share each work at the same time, and the last one joins the parts of a file.
    """
    of_folder = {job.folder(path): (number, path, job) for number, (path, job) in enumerate(files)}
    updates = []
    open_more_files()  # Each lock holds one open.
    with contextlib.ExitStack() as locks:
        # In one order for all processes, so that no two of them wait for each other.
        for folder, (number, path, job) in sorted(of_folder.items()):
            state = remote.state(path)
            if is_current(folder, state):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            drafts = locks.enter_context(locked(folder, fcntl.LOCK_EX if share.count == 1 else fcntl.LOCK_SH))
            if not is_current(folder, state):
                own = drafts if share.count == 1 else folder / DRAFTS
                updates.append(_FileUpdate.of(number, path, job, state, own, saved_parts(folder)))
        _run(sorted(updates, key=lambda one: one.number), progress, share)
    joined = [_join(one) for one in updates] if share.count > 1 else []
    return all(joined)


def renew_index(path: str | Path, job: IndexJob, lines: Set[int]) -> None:
    """Rebuild the parts of an index that hold these lines, although their bytes are unchanged: media were fixed."""
    path = str(path)
    load_index(path, job)
    folder = job.folder(path)
    with locked(folder) as drafts:
        stale = {part for part, own in lines_of_edition(folder) if not lines.isdisjoint(own)}
        kept = [saved for saved in saved_parts(folder) if saved.part not in stale]
        # Parts of an interrupted pass may be from before the media were fixed.
        shutil.rmtree(drafts, ignore_errors=True)
        _run([_FileUpdate.of(0, path, job, remote.state(path), drafts, kept)], lambda _: None, EVERYTHING)


def forget_index(path: str | Path, job: IndexJob, is_damaged: bool = False) -> None:
    """Delete the index of a data file, so that the next `load_index` rebuilds it.

    is_damaged: keep it if it can be opened, since another process may have rebuilt it.
    """
    folder = job.folder(str(path))
    if folder.exists():
        with locked(folder) as drafts:
            if not is_damaged or isinstance(find_edition(folder), Exception):
                shutil.rmtree(drafts, ignore_errors=True)
                (folder / META).unlink(missing_ok=True)


def lines_of_parts(path: str | Path, job: IndexJob) -> list[tuple[Part, range]]:
    """The parts of a data file and the line numbers of each, from its index, which is built if it is missing."""
    load_index(path, job)
    return lines_of_edition(job.folder(str(path)))


@dataclass
class _FileUpdate:
    """The next edition of a data file's index."""

    number: int
    """Number of the file in its pass."""
    path: str
    job: IndexJob
    state: list[Any]
    """State of the file, as of `remote.state`."""
    drafts: Path
    """Folder of the parts until all are indexed."""
    parts: Sequence[Part]
    indexed: dict[Part, IndexPart]
    """Parts that are unchanged since the last edition, and those that were indexed now."""

    @classmethod
    def of(
        cls, number: int, path: str, job: IndexJob, state: list[Any], drafts: Path, saved: Sequence[IndexPart]
    ) -> _FileUpdate:
        """Plan an edition that keeps those of the `saved` parts whose bytes are unchanged."""
        format, meta, old = job.settings.make_format(), read_meta(drafts.parent), {one.part: one for one in saved}
        parts = format.parts(path, job.part_bytes)
        kept = {part: old[part] for part in parts if part in old and old[part].digest == format.digest(path, part)}
        if meta and len(kept) < len(parts) and meta["state"] != state:
            # A file that is not of its format any more has no digests of its old parts.
            same = (part in kept or format.digest(path, part) == old[part].digest for part in old)
            is_longer = WHOLE_FILE not in parts and all(same)
            what, again = "grew" if is_longer else "changed", len(parts) - len(kept)
            logger.warning("%s %s since it was indexed: %d of %d parts again", path, what, again, len(parts))
        return cls(number, path, job, state, drafts, parts, kept)

    def tasks(self, share: Share) -> list[PartTask]:
        """The parts of a share that have to be indexed."""
        own = (part for place, part in enumerate(self.parts) if share.holds(self.number, place))
        return [PartTask(self.path, part, self.job.settings, self.drafts) for part in own if part not in self.indexed]

    def bytes_of(self, part: Part) -> int:
        """About the bytes of a part, whose unit is the format's."""
        return self.state[1] * (part.end - part.start) // self._units

    @functools.cached_property
    def _units(self) -> int:
        return max(sum(part.end - part.start for part in self.parts), 1)

    @property
    def is_complete(self) -> bool:
        """Whether all parts are indexed."""
        return len(self.indexed) == len(self.parts)

    def write(self) -> None:
        """Write the edition and remove the drafts."""
        folder = self.drafts.parent
        edition = read_meta(folder).get("edition", 0) + 1
        index = write_edition(folder, [self.indexed[part] for part in self.parts], self.state, edition)
        shutil.rmtree(self.drafts, ignore_errors=True)
        logger.info("indexed %s: %d samples, %d quarantined", self.path, len(index), len(index.quarantined))


def _run(updates: Sequence[_FileUpdate], progress: OnProgress, share: Share) -> None:
    """Index the parts of a share; without shares, write the edition of each file whose parts are all done."""
    of_task = {task: one for one in updates for task in one.tasks(share)}
    for one in updates:
        if one.is_complete and share.count == 1:
            one.write()
    if not of_task:
        return
    total = sum(one.bytes_of(task.part) for task, one in of_task.items())
    # On a file system without locks, the other processes index too.
    is_alone = share.count == 1 and all(one.drafts.name == DRAFTS for one in updates)
    pool, done, quarantined = updates[0].job.processes, 0, 0
    files = len({one.number for one in of_task.values()})
    progress(IndexProgress(files, done, total, quarantined, pool.size(is_alone)))
    for task, indexed in pool.index(list(of_task), is_alone):
        one = of_task[task]
        one.indexed[task.part] = indexed
        done, quarantined = done + one.bytes_of(task.part), quarantined + len(indexed.index.quarantined)
        progress(IndexProgress(files, done, total, quarantined, pool.size(is_alone)))
        if one.is_complete and share.count == 1:
            one.write()


def _join(update: _FileUpdate) -> bool:
    """Write the edition of a file if the shares of all processes are done; whether it has its edition.

    A process that still works on its share holds the lock, and joins the parts itself.
    """
    folder = update.drafts.parent
    with contextlib.suppress(BlockingIOError), locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if not is_current(folder, update.state) and all(task.file.exists() for task in update.tasks(EVERYTHING)):
            try:
                _run([update], lambda _: None, EVERYTHING)
            except OSError:
                if not is_current(folder, update.state):  # Without locks, another process may join it too.
                    raise
        return is_current(folder, update.state)
    return False
