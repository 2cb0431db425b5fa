"""Remembers at which sample a process was that opened headers, so that one whose headers end the process is known."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDS_TO_BLAME = 2
"""Times that a process ended at a sample before it is set aside: the first may have had another cause."""
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
