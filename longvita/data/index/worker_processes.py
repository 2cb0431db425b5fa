"""The processes that index: they share the parts of a file, and one that a broken medium ends costs that sample."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from longvita.data.chat_template import ChatTemplate
from longvita.data.document import probe_sample
from longvita.data.errors import DataError
from longvita.data.formats.base import Part
from longvita.data.index.build import IndexSettings, Piece, index_part_once, piece_file
from longvita.data.index.probe import USUAL_LIMITS, ProbeLimits, blamed, ends_noted
from longvita.data.media.item import MediaFacts
from longvita.data.sample import Sample
from longvita.data.tokenizer import LongVITATokenizer
from longvita.process_limits import ends_process_after, limit_memory
from longvita.processes import die_with_parent

if TYPE_CHECKING:
    from longvita.config.schema import Config

logger = logging.getLogger(__name__)


class IndexProcesses(contextlib.AbstractContextManager):
    """Processes that are started when there is something to index, and kept for the next file until `close`.

    number: of processes; 0 does the work in this one, without limits, and what ends it ends all.
    """

    def __init__(self, template: ChatTemplate, number: int, limits: ProbeLimits = USUAL_LIMITS):
        self.template, self._number, self._limits = template, number, limits
        self._pool: ProcessPoolExecutor | None = None
        self._size = 0

    @classmethod
    def of(cls, config: Config, template: ChatTemplate) -> IndexProcesses:
        """Those that a config asks for."""
        limits = ProbeLimits(config.data.sample_timeout_seconds, config.data.decode_memory_bytes)
        return cls(template, config.data.index_processes, limits)

    def index(self, path: str, parts: Sequence[Part], settings: IndexSettings, folder: Path) -> Iterator[Piece]:
        """The pieces of `parts`, as they are done: from `folder`, where an interrupted pass left them, or made now.

        Raises DataError if the processes end for another cause than a sample's media.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._number == 0:
            yield from (index_part_once(path, part, self.template, settings, folder, None) for part in parts)
            return
        size, done, before = self._number, set[Part](), (-1, -1)
        while len(done) < len(parts):
            try:
                left = [part for part in parts if part not in done]
                for part in self._index_in_pool(path, left, settings, folder, size):
                    done.add(part)
                    yield Piece.load(piece_file(folder, part))
            except BrokenProcessPool:
                self.close()
                now = (len(done), ends_noted(folder))
                if now == before:
                    raise DataError(
                        f"the processes that index {path} end again and again; is there memory enough?"
                    ) from None
                before = now
                logger.warning("%s: a process that indexed it ended; its part is begun again", path)
                size = 1  # Alone, a process that ends is at the sample that ended it, and no other is ended with it.

    def _index_in_pool(
        self, path: str, parts: Sequence[Part], settings: IndexSettings, folder: Path, size: int
    ) -> Iterator[Part]:
        pool = self._pool_of(size)
        futures = {pool.submit(_index, path, part, settings, folder): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            for future in futures:
                future.cancel()

    def probe(self, sample: Sample, settings: IndexSettings) -> MediaFacts:
        """What the headers of one sample's media tell, in one of the processes. Raises SampleError."""
        if self._number == 0 or not (sample.images or sample.videos):
            return probe_sample(sample, settings.media_root, settings.max_fps)
        pool = self._pool_of(1)
        try:
            return pool.submit(_probe, sample, settings).result()
        except BrokenProcessPool:
            self.close()
            raise blamed(sample, "ended or took too long") from None

    def close(self) -> None:
        """Ends the processes; may be called more than once, and new ones start when they are wanted again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _pool_of(self, size: int) -> ProcessPoolExecutor:
        if self._pool is None or self._size != size:
            self.close()
            # Spawned, not forked: the process that asks may hold threads, locks and a device.
            context = multiprocessing.get_context("spawn")
            setup = (self.template.tokenizer.to_json(), self.template.tokens_per_tile, self._limits)
            self._pool, self._size = ProcessPoolExecutor(size, context, _set_up, setup), size
        return self._pool


_SETUP: list[tuple[ChatTemplate, ProbeLimits]] = []
"""Of a process of the pool, which is set up once."""


def _set_up(tokenizer: str, tokens_per_tile: int, limits: ProbeLimits) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)  # A parent that is killed tells nobody.
    limit_memory(limits.memory_bytes)
    _SETUP[:] = [(ChatTemplate(LongVITATokenizer.from_json(tokenizer), tokens_per_tile), limits)]


def _index(path: str, part: Part, settings: IndexSettings, folder: Path) -> None:
    template, limits = _SETUP[0]
    try:
        index_part_once(path, part, template, settings, folder, limits.seconds)
    except MemoryError:
        raise DataError(
            f"{path}: reading a part of it takes more than data.decode_memory_bytes {limits.memory_bytes}, and would "
            "where it is trained on; raise that, or write the file with smaller row groups"
        ) from None


def _probe(sample: Sample, settings: IndexSettings) -> MediaFacts:
    _, limits = _SETUP[0]
    with ends_process_after(limits.seconds):
        return probe_sample(sample, settings.media_root, settings.max_fps)
