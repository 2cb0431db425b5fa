"""Data files of a mix that are not there: found all at once, before any is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the checks of longvita.config call this module
    from longvita.config.schema import Config, DatasetConfig

Missing = Mapping[str, Sequence[str]]
"""Source name to the paths of its files that are not there."""


def missing_files(config: Config, sources: Mapping[str, DatasetConfig]) -> dict[str, list[str]]:
    """The files of a mix that are not there, by source; a source with ratio 0 needs none."""
    found = {}
    for name, dataset in sources.items():
        paths = [path for path in dataset.data_paths if not config.data.data_file(path).is_file()]
        if paths and dataset.ratio > 0:
            found[name] = [str(config.data.data_file(path)) for path in paths]
    return found


def holds_nothing(sources: Mapping[str, DatasetConfig], missing: Missing) -> bool:
    """Whether files are missing and none of the mix is there."""
    needed = sum(len(dataset.data_paths) for dataset in sources.values() if dataset.ratio > 0)
    return count_missing(missing) == needed > 0


def count_missing(missing: Missing) -> int:
    """How many files are missing."""
    return sum(len(paths) for paths in missing.values())


def describe_missing(missing: Missing) -> str:
    """Every missing file, below its source."""
    count, sources = count_missing(missing), len(missing)
    files = f"{count} data file{'s' if count > 1 else ''} of {sources} source{'s' if sources > 1 else ''}"
    lines = [line for name, paths in missing.items() for line in (f"  {name}:", *(f"    {path}" for path in paths))]
    return "\n".join([f"{files} {'are' if count > 1 else 'is'} not there:", *lines])
