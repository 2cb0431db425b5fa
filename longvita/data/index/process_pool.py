"""Processes that index the parts of a file; a media file that crashes one of them costs one sample.

This pool is our own: concurrent.futures does not retry tasks after a crash or find the sample that caused it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longvita.data.chat_template import ChatTemplate
from longvita.data.errors import DataError
from longvita.data.formats.base import Part
from longvita.data.index.build import IndexPart, IndexSettings, load_or_index_part, part_file
from longvita.data.index.header_probe import DEFAULT_LIMITS, ProbeLimits, count_crashes, crash_error, was_interrupted
from longvita.data.media.item import MediaFacts
from longvita.data.sample import Sample
from longvita.data.tokenizer import LongVITATokenizer
from longvita.process_limits import available_cores, ends_process_after, limit_memory
from longvita.processes import die_with_parent, processes_on_this_machine

if TYPE_CHECKING:
    from longvita.config.schema import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartTask:
    """A part of a data file to index."""

    path: str
    part: Part
    settings: IndexSettings
    folder: Path
    """Folder of its index until all parts of the file are indexed."""

    @property
    def file(self) -> Path:
        """File of its index."""
        return part_file(self.folder, self.part)


class IndexProcessPool(contextlib.AbstractContextManager):
    """Processes, started at the first work and kept for the next file until `close`.

    number: of processes; 0 indexes in this process, without limits, where a crash ends the run. When None, one for each
    core: all those of this process, or its share of them where other processes of its run index at the same time.
    """

    def __init__(self, template: ChatTemplate, number: int | None, limits: ProbeLimits = DEFAULT_LIMITS):
        self.template, self._number, self._limits = template, number, limits
        self._pool: ProcessPoolExecutor | None = None
        self._size = 0

    @classmethod
    def of(cls, config: Config, template: ChatTemplate) -> IndexProcessPool:
        """The pool of a config's number of processes and limits."""
        limits = ProbeLimits(config.data.sample_timeout_seconds, config.data.decode_memory_bytes)
        return cls(template, config.data.index_processes, limits)

    def size(self, is_alone: bool = True) -> int:
        """Number of processes; `is_alone` is False where the other processes of this run on this machine index too."""
        if self._number is not None:
            return self._number
        return max(1, available_cores() // (1 if is_alone else processes_on_this_machine()))

    def index(self, tasks: Sequence[PartTask], is_alone: bool = True) -> Iterator[tuple[PartTask, IndexPart]]:
        """Yield each part and its index as it is done, loaded from its file if an interrupted pass saved it there.

        is_alone: as for `size`. Raises DataError if the processes crash for another reason than a sample's media files.
        """
        for folder in {task.folder for task in tasks}:
            folder.mkdir(parents=True, exist_ok=True)
        if self.size(is_alone) == 0:
            for task in tasks:
                yield task, load_or_index_part(task.path, task.part, self.template, task.settings, task.folder, None)
            return
        left, interrupted, last_progress = dict.fromkeys(tasks), list[PartTask](), (-1, -1)
        while left:
            try:
                # With one process, the recorded line is that of the crash, and no other part is interrupted.
                size = 1 if interrupted else self.size(is_alone)
                for task in self._index_in_pool(interrupted or list(left), size):
                    del left[task]
                    yield task, IndexPart.load(task.file)
                interrupted = []
            except BrokenProcessPool:
                self.close()
                progress = (len(left), sum(count_crashes(folder) for folder in {task.folder for task in left}))
                interrupted = [task for task in left if was_interrupted(task.file)]
                paths = ", ".join({task.path for task in interrupted or left})
                if progress == last_progress:
                    raise DataError(
                        f"the processes that index {paths} end again and again; is there enough memory?"
                    ) from None
                last_progress = progress
                logger.warning("%s: a process that indexed it ended; its part is started again", paths)

    def _index_in_pool(self, tasks: Sequence[PartTask], size: int) -> Iterator[PartTask]:
        pool = self._pool_of(size)
        futures = {pool.submit(_index, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            for future in futures:
                future.cancel()

    def probe(self, sample: Sample, settings: IndexSettings) -> MediaFacts:
        """Read the media headers of one sample in one of the processes. Raises SampleError."""
        if self.size() == 0 or not (sample.images or sample.videos):
            return settings.probe(sample)
        pool = self._pool_of(1)
        try:
            return pool.submit(_probe, sample, settings).result()
        except BrokenProcessPool:
            self.close()
            raise crash_error(sample, "ended or took too long") from None

    def close(self) -> None:
        """End the processes; may be called repeatedly, and the next work starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _pool_of(self, size: int) -> ProcessPoolExecutor:
        if self._pool is None or self._size != size:
            self.close()
            # Spawned, not forked: this process may have threads, locks and a device.
            context = multiprocessing.get_context("spawn")
            setup = (self.template.tokenizer.to_json(), self.template.tokens_per_tile, self._limits)
            self._pool, self._size = ProcessPoolExecutor(size, context, _set_up, setup), size
        return self._pool


_SETUP: list[tuple[ChatTemplate, ProbeLimits]] = []
"""Set once in each process of the pool."""


def _set_up(tokenizer: str, tokens_per_tile: int, limits: ProbeLimits) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)  # A killed parent can't end its children.
    limit_memory(limits.memory_bytes)
    _SETUP[:] = [(ChatTemplate(LongVITATokenizer.from_json(tokenizer), tokens_per_tile), limits)]


def _index(task: PartTask) -> None:
    template, limits = _SETUP[0]
    try:
        load_or_index_part(task.path, task.part, template, task.settings, task.folder, limits.seconds)
    except MemoryError:
        raise DataError(
            f"{task.path}: reading a part of it takes more than data.decode_memory_bytes {limits.memory_bytes}, in "
            "training too; raise that, or write the file with smaller row groups"
        ) from None


def _probe(sample: Sample, settings: IndexSettings) -> MediaFacts:
    _, limits = _SETUP[0]
    with ends_process_after(limits.seconds):
        return settings.probe(sample)
