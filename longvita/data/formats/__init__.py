"""The formats of data files by name. A new format is a module of this folder and an entry of FORMATS."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from longvita.data.errors import DataError, SampleError
from longvita.data.formats.base import Format, Place
from longvita.data.formats.captions import Captions
from longvita.data.formats.checked import CheckedFormat
from longvita.data.formats.json_array import JsonArray
from longvita.data.formats.jsonl import Jsonl
from longvita.data.formats.parquet import Parquet
from longvita.data.formats.paths import format_of
from longvita.data.formats.record import FormatOptions
from longvita.data.formats.webdataset import WebDataset
from longvita.data.sample import Sample
from longvita.data.storage import remote

FORMATS: dict[str, type[Format]] = {format.name: format for format in (Jsonl, JsonArray, Parquet, WebDataset, Captions)}


def make_format(name: str, options: FormatOptions) -> Format:
    """Create the format of a source's files. Raises DataError for an unknown name."""
    if name not in FORMATS:
        raise DataError(f"there is no format {name!r}; the formats are {', '.join(FORMATS)}")
    return CheckedFormat(FORMATS[name](options))


def read_samples(path: str, name: str | None, options: FormatOptions) -> Iterator[tuple[Place, Sample | SampleError]]:
    """Yield all samples of a data file in order. Raises DataError if the file does not exist, or is a folder.

    name: name of the format; when None, it follows from the file's suffix.
    """
    if not remote.exists(path):
        raise DataError(f"data file {path} does not exist")
    format = make_format(format_of(path, name), options)
    if format.name != Captions.name and remote.is_folder(path):
        raise DataError(f"{path} is a folder, not a file of format {format.name}; fix: name its files, or no format")
    for part in format.parts(path, sys.maxsize):
        for place, sample in format.samples(path, part):
            if sample is not None:
                yield place, sample
