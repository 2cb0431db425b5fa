"""Finds the missing data files of a mix, all at once, before any file is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from longvita.config.errors import ABSENT, Problem
from longvita.config.schema import Config, DatasetConfig
from longvita.data.errors import DataError
from longvita.data.formats.paths import data_file, files_of_entry, format_of
from longvita.data.storage import remote

Missing = Mapping[str, Sequence[str]]
"""Source name -> paths of its missing files."""


def missing_files(config: Config, sources: Mapping[str, DatasetConfig]) -> dict[str, list[str]]:
    """Return the missing files of a mix, by source; a source with ratio 0 needs none. Raises DataError."""
    found: dict[str, list[str]] = {}
    for name, dataset, path in files_of_mix(config, sources):
        file = data_file(config.data, path)
        # A folder is not accepted in place of a file.
        is_folder = remote.is_folder(file) and format_of(file, dataset.format) != "captions"
        if is_folder or not remote.exists(file):
            found.setdefault(name, []).append(file)
    return found


def files_of_mix(config: Config, sources: Mapping[str, DatasetConfig]) -> list[tuple[str, DatasetConfig, str]]:
    """List source name, source and path relative to data_root of each file of a mix. Raises DataError."""
    return [
        (source, dataset, path)
        for source, dataset in sources.items()
        if dataset.ratio > 0
        for entry in dataset.data_paths
        for path in files_of_entry(config.data.data_root, entry)
    ]


def lacks_all_files(config: Config, sources: Mapping[str, DatasetConfig], missing: Missing) -> bool:
    """Return whether a mix has files and all of them are missing."""
    return count_missing(missing) == len(files_of_mix(config, sources)) > 0


def count_missing(missing: Missing) -> int:
    """Count the missing files."""
    return sum(len(paths) for paths in missing.values())


def describe_missing(missing: Missing) -> str:
    """List every missing file below its source."""
    count, sources = count_missing(missing), len(missing)
    files = f"{count} data file{'s' if count > 1 else ''} of {sources} source{'s' if sources > 1 else ''}"
    lines = [line for name, paths in missing.items() for line in (f"  {name}:", *(f"    {path}" for path in paths))]
    return "\n".join([f"{files} {'are' if count > 1 else 'is'} missing:", *lines])


def find_training_problems(config: Config) -> list[Problem]:
    """Find what a training run lacks: data, a tokenizer, data files."""
    problems = []
    if not config.data.dataset:
        fix = "include a data file, for instance ../data/stage1.yaml, or give data.dataset.NAME.data_paths"
        problems.append(Problem("no training data", "data.dataset", ABSENT, fix=fix))
    if not config.data.tokenizer:
        fix = "data.tokenizer=FOLDER, the tokenizer folder of Qwen2.5 or of a Long-VITA checkpoint"
        problems.append(Problem("no tokenizer", "data.tokenizer", ABSENT, fix=fix))
    elif not Path(config.data.tokenizer).is_dir():
        problems.append(Problem("there is no such folder", "data.tokenizer", config.data.tokenizer))
    problems += _missing_data(config, "dataset", config.data.dataset)
    for name, dataset in config.data.validation.items():
        problems += _missing_data(config, "validation", {name: dataset})
    return problems


def _missing_data(config: Config, field: str, sources: dict[str, DatasetConfig]) -> Iterator[Problem]:
    """Yield a problem for each source of a mix with missing files; it names the first one."""
    try:
        missing = missing_files(config, sources)
    except DataError as error:  # An empty range, a broken list of shards or a compressed file.
        yield Problem(str(error), f"data.{field}", ABSENT)
        return
    if config.data.allow_missing and not lacks_all_files(config, sources, missing):
        return
    for name, paths in missing.items():
        more = f" (and {len(paths) - 1} more of this source)" if len(paths) > 1 else ""
        fix = (
            "longvita data fetch CONFIG, data.data_root=FOLDER of the data sets, ratio: 0 to leave the source out, or "
            "data.allow_missing=true to leave out missing files"
        )
        yield Problem(f"there is no file {paths[0]}{more}", f"data.{field}.{name}.data_paths", ABSENT, fix=fix)
