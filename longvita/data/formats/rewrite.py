"""Write the samples of data files again in another format, broken ones left out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from longvita.data.errors import SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.record import FormatOptions
from longvita.data.formats.writers import Writer
from longvita.data.quarantine import QuarantinedSample


@dataclass(frozen=True)
class ConvertSource:
    """Data files that become one."""

    name: str
    files: tuple[str, ...]
    format: str | None
    """Name of the files' format; by the end of their names when None."""
    options: FormatOptions
    media_root: str

    @property
    def file_name(self) -> str:
        """Stem of the written files."""
        return re.sub(r"[^\w.+()-]+", "_", self.name).strip("_.") or "samples"


def write_samples(source: ConvertSource, writer: Writer) -> tuple[int, list[QuarantinedSample]]:
    """Write every sample that can be used; the number of written ones, and an entry for each other. Closes the writer.

    Raises DataError if a file of the source does not exist.
    """
    written, broken = 0, []
    try:
        for file in source.files:
            for place, sample in read_samples(file, source.format, source.options):
                try:
                    if isinstance(sample, SampleError):
                        raise sample
                    writer.add(written + 1, sample)
                    written += 1
                except SampleError as error:
                    broken.append(QuarantinedSample.because(error, source.name, file, place.line))
    finally:
        writer.close()
    return written, broken
