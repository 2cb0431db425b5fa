"""The entries of what an index sets aside, in a file that is read when somebody asks for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from longvita.data.index.columns import LEAST_MAPPED
from longvita.data.quarantine import QuarantinedSample


class QuarantinedEntries(Sequence[QuarantinedSample]):
    """Entries in their mapped file, parsed when one is asked for: few who open an index want more than their number.

    Raises ValueError for a file of another number.
    """

    def __init__(self, path: Path, count: int):
        # As for columns: a small file is read, a large one mapped.
        is_small = path.stat().st_size < LEAST_MAPPED
        self._content = np.fromfile(path, np.uint8) if is_small else np.memmap(path, np.uint8, "r")
        if np.count_nonzero(self._content == ord("\n")) != count:
            raise ValueError(f"{path} does not hold {count} entries")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place):
        return self._entries[place]

    @cached_property
    def _entries(self) -> tuple[QuarantinedSample, ...]:
        return tuple(QuarantinedSample.from_json(line) for line in self._content.tobytes().decode().splitlines())


def write_quarantined(file: BinaryIO, entries: Iterable[QuarantinedSample]) -> None:
    """Writes the file of a QuarantinedEntries."""
    file.writelines(f"{entry.to_json()}\n".encode() for entry in entries)
