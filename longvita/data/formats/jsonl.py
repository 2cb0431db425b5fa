"""JSONL: one sample a line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import BinaryIO

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.base import MAX_SAMPLE_BYTES, Part, Place, TextFormat
from longvita.data.sample import Sample
from longvita.data.storage import remote


class Jsonl(TextFormat):
    """One sample for each line."""

    name = "jsonl"

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts that begin with the first complete line at or after each multiple of `part_bytes`."""
        end = remote.size(path)
        bounds = [0]
        with remote.open_file(path) as file:
            for target in range(part_bytes, end, part_bytes):
                if target > bounds[-1]:
                    # From the byte before: a line that begins exactly at the target is complete.
                    file.seek(target - 1)
                    _skip_line(file)
                    bounds.append(file.tell())
        if bounds[-1] < end:
            bounds.append(end)
        return [Part(start, stop) for start, stop in itertools.pairwise(bounds)]

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each line, None for a blank one."""
        for number, (offset, line) in enumerate(lines_of(path, part), start=1):
            place = Place(offset, len(line), number)
            try:
                if len(line) > MAX_SAMPLE_BYTES:
                    raise SampleError(Reason.INVALID_SAMPLE, f"the line is longer than {MAX_SAMPLE_BYTES >> 20} MiB")
                yield place, self.parse(line) if line.strip() else None
            except SampleError as error:
                yield place, error


def lines_of(path: str, part: Part) -> Iterator[tuple[int, bytes]]:
    """First byte and content of each line of a part of a file; a line is cut after MAX_SAMPLE_BYTES + 1 bytes."""
    offset = part.start
    with remote.open_file(path) as file:
        file.seek(offset)
        while offset < part.end and (line := file.readline(MAX_SAMPLE_BYTES + 1)):
            yield offset, line
            offset += len(line)
            if len(line) > MAX_SAMPLE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                offset = file.tell()


def _skip_line(file: BinaryIO) -> None:
    """Skip to the next line, however long this one is."""
    while (block := file.readline(1 << 20)) and not block.endswith(b"\n"):
        pass
