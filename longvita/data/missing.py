"""Data files of a mix that are not there: found all at once, before any is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from longvita.data import remote
from longvita.data.paths import files_of_entry, format_of

if TYPE_CHECKING:  # the checks of longvita.config call this module
    from longvita.config.schema import Config, DatasetConfig

Missing = Mapping[str, Sequence[str]]
"""Source name to the paths of its files that are not there."""


def missing_files(config: Config, sources: Mapping[str, DatasetConfig]) -> dict[str, list[str]]:
    """The files of a mix that are not there, by source; a source with ratio 0 needs none. Raises DataError."""
    found: dict[str, list[str]] = {}
    for name, dataset, path in files_of_mix(config, sources):
        file = config.data.data_file(path)
        # A folder in the place of a file is not what was asked for.
        is_folder = remote.is_folder(file) and format_of(file, dataset.format) != "captions"
        if is_folder or not remote.exists(file):
            found.setdefault(name, []).append(file)
    return found


def files_of_mix(config: Config, sources: Mapping[str, DatasetConfig]) -> list[tuple[str, DatasetConfig, str]]:
    """Source name, source and path relative to data_root of each file of a mix, there or not. Raises DataError."""
    return [
        (source, dataset, path)
        for source, dataset in sources.items()
        if dataset.ratio > 0
        for entry in dataset.data_paths
        for path in files_of_entry(config.data.data_root, entry)
    ]


def holds_nothing(config: Config, sources: Mapping[str, DatasetConfig], missing: Missing) -> bool:
    """Whether files are missing and none of the mix is there."""
    return count_missing(missing) == len(files_of_mix(config, sources)) > 0


def count_missing(missing: Missing) -> int:
    """How many files are missing."""
    return sum(len(paths) for paths in missing.values())


def describe_missing(missing: Missing) -> str:
    """Every missing file, below its source."""
    count, sources = count_missing(missing), len(missing)
    files = f"{count} data file{'s' if count > 1 else ''} of {sources} source{'s' if sources > 1 else ''}"
    lines = [line for name, paths in missing.items() for line in (f"  {name}:", *(f"    {path}" for path in paths))]
    return "\n".join([f"{files} {'are' if count > 1 else 'is'} not there:", *lines])
