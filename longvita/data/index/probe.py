"""Opening the headers of a sample's media where each sample may take the process along, or all the time there is."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from longvita.data.document import probe_sample
from longvita.data.errors import DataError, MediaError, Reason, SampleError
from longvita.data.media.item import MediaFacts
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.data.storage.retries import store_failure, with_retries
from longvita.process_limits import ends_process_after

ENDS_TO_BLAME = 2
"""Times that a process ended at a sample before it is set aside: the first may have had another cause."""
MOST_STORE_FAILURES = 3
"""Samples in a row that the store does not give the media of, before that ends the pass."""
_LINE = struct.Struct("<q")


class ProbeMark:
    """Of one part of a data file, while it is indexed: two small files that a process which ends leaves behind."""

    def __init__(self, path: Path):
        self._line, self._ends = path.with_suffix(".line"), path.with_suffix(".ends")
        ends = self._read_ends()
        with suppress(FileNotFoundError, struct.error):
            (line,) = _LINE.unpack(self._line.read_bytes())
            if line:
                ends[line] = ends.get(line, 0) + 1
                self._ends.write_text(json.dumps(list(ends.items())))
        self.blamed = {line for line, count in ends.items() if count >= ENDS_TO_BLAME}
        """Lines at which a process ended time and again."""
        self._file = open(self._line, "wb", buffering=0)  # noqa: SIM115 - open as long as the part is worked on.
        self._write(0)

    @contextmanager
    def at(self, line: int) -> Iterator[None]:
        """While the headers of the sample at a line, counted from 1 in the part, are opened."""
        self._write(line)
        try:
            yield
        finally:
            self._write(0)

    def remove(self) -> None:
        """The part is done."""
        self._file.close()
        for file in (self._line, self._ends):
            file.unlink(missing_ok=True)

    def _write(self, line: int) -> None:
        self._file.seek(0)
        self._file.write(_LINE.pack(line))

    def _read_ends(self) -> dict[int, int]:
        try:
            return dict(json.loads(self._ends.read_text()))
        except (FileNotFoundError, ValueError):
            return {}


def ends_noted(folder: Path) -> int:
    """How often a process ended while it opened headers, of all parts whose marks lie in a folder.

    The last end of each part is noted when it is begun again, and counted here already.
    """
    noted = sum(count for file in folder.glob("*.ends") for _, count in json.loads(file.read_text()))
    return noted + sum(file.read_bytes() != _LINE.pack(0) for file in folder.glob("*.line"))


@dataclass(frozen=True)
class ProbeLimits:
    """What the headers of one sample's media may take of a process that opens them."""

    seconds: float = 600.0
    memory_bytes: int = 4 << 30
    """Beside what the process has at its start."""


USUAL_LIMITS = ProbeLimits()


class HeaderProbe:
    """Opens the headers of a part's samples.

    media_root, max_fps: as for `probe_sample`. seconds: after so long this process ends; never when None.
    """

    def __init__(self, media_root: str, max_fps: float, mark: ProbeMark, seconds: float | None):
        self._media_root, self._max_fps, self._mark, self._seconds = media_root, max_fps, mark, seconds
        self._store_failures = 0

    def facts(self, sample: Sample, line: int, name: str) -> MediaFacts:
        """What the headers of a sample's media tell; `line` as for ProbeMark.at, `name` for messages.

        Raises SampleError, also for one that ended the process before; DataError if the store gives nothing any more or
        there is no media root.
        """
        if not sample.images and not sample.videos:
            return MediaFacts()
        if line in self._mark.blamed:
            raise blamed(sample, f"ended or took too long, {ENDS_TO_BLAME} times")
        try:
            with self._mark.at(line):
                facts = with_retries(lambda: self._open(sample), name)
        except MediaError as error:
            if error.reason == Reason.MISSING_FILE and not remote.exists(self._media_root):
                raise DataError(
                    f"{name} has media below {self._media_root}, which does not exist: mount it, or set "
                    "data.media_root (or the source's media_root)"
                ) from error
            self._store_failures = self._store_failures + 1 if store_failure(error) else 0
            if self._store_failures == MOST_STORE_FAILURES:
                raise DataError(
                    f"{name}: {error.detail}. The media of {MOST_STORE_FAILURES} samples in a row can't be read; "
                    "start again when their store is back, the index goes on where it was"
                ) from error
            raise
        self._store_failures = 0
        return facts

    def _open(self, sample: Sample) -> MediaFacts:
        with ends_process_after(self._seconds) if self._seconds is not None else nullcontext():
            return probe_sample(sample, self._media_root, self._max_fps)


def blamed(sample: Sample, what: str) -> SampleError:
    """The error of a sample whose headers took the process along."""
    reason = Reason.BROKEN_VIDEO if sample.videos else Reason.BROKEN_PICTURE
    return SampleError(reason, f"the process that opened its headers {what}")
