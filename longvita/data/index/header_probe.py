"""Read the headers of a sample's media files, which may crash or hang the process that reads them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from longvita.data.errors import DataError, MediaError, Reason, SampleError
from longvita.data.media.facts_store import SAVED, FactsStore
from longvita.data.media.item import MediaFacts
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.data.storage.retries import store_failure, with_retries
from longvita.files import write_atomically
from longvita.process_limits import ends_process_after

MAX_CRASHES = 2
"""Crashes at a sample before it is quarantined: the first may have had another cause."""
MAX_STORE_FAILURES = 3
"""Consecutive samples whose media files the store fails to deliver before the pass ends with an error."""
_LINE = struct.Struct("<q")


class CrashRecord:
    """Lines of one part at which a process crashed: two small files, written before the crash that they record."""

    def __init__(self, path: Path):
        self._line, self._crashes = path.with_suffix(".line"), path.with_suffix(".crashes")
        crashes, line = _crashes_of(self._crashes), _line_of(self._line)
        if line:
            crashes[line] = crashes.get(line, 0) + 1
            write_atomically(self._crashes, json.dumps(list(crashes.items())))
        self.lines = {line for line, count in crashes.items() if count >= MAX_CRASHES}
        """Lines with MAX_CRASHES crashes, counted from 1 in the part."""
        self._file = open(self._line, "wb", buffering=0)  # noqa: SIM115 - open while the part is indexed.
        self._write(0)

    @contextmanager
    def at(self, line: int) -> Iterator[None]:
        """Record a crash in this block as one at a line, counted from 1 in the part."""
        self._write(line)
        try:
            yield
        finally:
            self._write(0)

    def remove(self) -> None:
        """Delete the files: the part is indexed."""
        self._file.close()
        for file in (self._line, self._crashes):
            file.unlink(missing_ok=True)

    def _write(self, line: int) -> None:
        self._file.seek(0)
        self._file.write(_LINE.pack(line))


def was_interrupted(path: Path) -> bool:
    """Whether the process that indexed a part ended before it was done; `path` as for CrashRecord."""
    return path.with_suffix(".line").exists()


def count_crashes(folder: Path) -> int:
    """Number of crashes of all parts whose records are in a folder; other processes may write and remove these.

    The last crash of each part is written to its record when the part is started again, and is already counted here.
    """
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = os.listdir(folder)
    recorded = sum(sum(_crashes_of(folder / name).values()) for name in names if name.endswith(".crashes"))
    return recorded + sum(_line_of(folder / name) > 0 for name in names if name.endswith(".line"))


def _crashes_of(file: Path) -> dict[int, int]:
    """Number of recorded crashes by line; empty if there is no intact record."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(file.read_text()))
    return {}


def _line_of(file: Path) -> int:
    """The line that is indexed, or was when the process ended; 0 for none."""
    with suppress(OSError, struct.error):
        return _LINE.unpack(file.read_bytes())[0]
    return 0


@dataclass(frozen=True)
class ProbeLimits:
    """Time and memory for reading the headers of one sample's media files."""

    seconds: float = 600.0
    memory_bytes: int = 4 << 30
    """In addition to the memory of the process at its start."""


DEFAULT_LIMITS = ProbeLimits()


class HeaderProbe:
    """Reads the media headers of a part's samples.

    media_root: as for `probe_sample`. probe: reads those of one sample that `known` does not have. seconds: a sample
    that takes longer ends this process; never when None.
    """

    def __init__(
        self,
        media_root: str,
        probe: Callable[[Sample, FactsStore | None], MediaFacts],
        crashes: CrashRecord,
        seconds: float | None,
        known: FactsStore | None = None,
    ):
        self._media_root, self._probe, self._crashes, self._seconds = media_root, probe, crashes, seconds
        self._known = known
        self._store_failures = 0

    def facts(self, sample: Sample, line: int, name: str) -> MediaFacts:
        """Read the media headers of a sample; `line` as for CrashRecord.at, `name` for messages.

        Raises SampleError, also for a sample that crashed the process before; DataError if the store fails for
        MAX_STORE_FAILURES samples in a row or the media root does not exist.
        """
        if not sample.images and not sample.videos:
            return MediaFacts()
        if line in self._crashes.lines:
            raise crash_error(sample, f"ended or took too long, {MAX_CRASHES} times")
        try:
            with self._crashes.at(line):
                facts = with_retries(lambda: self._open(sample), name)
        except MediaError as error:
            if error.reason == Reason.MISSING_FILE and not remote.exists(self._media_root):
                raise DataError(
                    f"{name} has media below {self._media_root}, which does not exist: mount it, or set "
                    "data.media_root (or the source's media_root)"
                ) from error
            self._store_failures = self._store_failures + 1 if store_failure(error) else 0
            if self._store_failures == MAX_STORE_FAILURES:
                raise DataError(
                    f"{name}: {error.detail}. The media of {MAX_STORE_FAILURES} samples in a row can't be read; "
                    "start again when their store is back, the index resumes"
                ) from error
            raise
        self._store_failures = 0
        if self._known is not None:
            self._known.save(SAVED)  # Outside the time limit, which is the headers'.
        return facts

    def _open(self, sample: Sample) -> MediaFacts:
        with ends_process_after(self._seconds) if self._seconds is not None else nullcontext():
            return self._probe(sample, self._known)


def crash_error(sample: Sample, what: str) -> SampleError:
    """The error of a sample whose headers ended the process that read them."""
    reason = Reason.BROKEN_VIDEO if sample.videos else Reason.BROKEN_PICTURE
    return SampleError(reason, f"the process that opened its headers {what}")
