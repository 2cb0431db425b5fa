"""The quarantined samples of an index, parsed from their file only when one is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from longvita.data.index.columns import MIN_MAPPED_BYTES
from longvita.data.quarantine import QuarantinedSample


class QuarantinedEntries(Sequence[QuarantinedSample]):
    """Entries of a mapped file. Parsing is delayed because most readers of an index need only their number.

    Raises ValueError if the file does not hold `count` entries.
    """

    def __init__(self, path: Path, count: int):
        # As for columns: a small file is read, a large one mapped.
        is_small = path.stat().st_size < MIN_MAPPED_BYTES
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
    """Write the file that QuarantinedEntries reads."""
    file.writelines(f"{entry.to_json()}\n".encode() for entry in entries)
