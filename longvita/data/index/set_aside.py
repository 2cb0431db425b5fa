"""The entries of what an index sets aside, in a file that is read when somebody asks for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from longvita.data.quarantine import SetAside


class SetAsideFile(Sequence[SetAside]):
    """Entries in their mapped file. Their number is known without a look at it: few who open an index want more."""

    def __init__(self, path: Path, count: int):
        self._content = np.memmap(path, np.uint8, "r") if count else np.zeros(0, np.uint8)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place):
        return self._entries[place]

    @cached_property
    def _entries(self) -> tuple[SetAside, ...]:
        return tuple(SetAside.from_json(line) for line in self._content.tobytes().decode().splitlines())


def write_set_aside(path: Path, entries: Iterable[SetAside]) -> None:
    """Writes the file of a SetAsideFile."""
    path.write_text("".join(f"{entry.to_json()}\n" for entry in entries))
