"""The files that an entry of data_paths names: patterns, ranges, folders of tables and lists of shards."""

from __future__ import annotations

import json
import re
from typing import Any

from longvita.config.schema import DataConfig
from longvita.data.errors import DataError
from longvita.data.formats.folders import files_of_folder
from longvita.data.media.suffixes import ending
from longvita.data.storage import remote

FORMAT_OF_ENDING = {"jsonl": "jsonl", "json": "json", "parquet": "parquet", "arrow": "parquet", "tar": "webdataset"}
OTHER_FORMATS = ("gz", "tgz", "zip", "bz2", "xz", "zst", "7z", "rar", "csv", "tsv", "xlsx", "sqlite", "lmdb", "npz")
"""File name extensions that are never JSONL."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""{000..127}: includes both ends; numbers have at least as many digits as the first one."""
SHARD_LIST = "wids-shard-index"
"""Marks a list of WebDataset shards."""


def format_of(path: str, given: str | None = None) -> str:
    """Return the name of a data file's format: the given one, or by its extension.

    With an unknown extension it is JSONL for a file and captions for a folder. Raises DataError for a compressed file
    and for a table in none of the formats.
    """
    by_name = given or FORMAT_OF_ENDING.get(ending(path))
    if by_name is None and ending(path) in OTHER_FORMATS and not remote.is_folder(path):
        raise DataError(
            f"{path}: no format reads .{ending(path)} files; fix: unpack or convert it, or set the source's format "
            "if the name is misleading"
        )
    return by_name or ("captions" if remote.is_folder(path) else "jsonl")


def data_file(data: DataConfig, path: str) -> str:
    """Join a path of data_paths to data.data_root, unless it is absolute or has a scheme."""
    return remote.join(data.data_root, path)


def files_of_entry(root: str, entry: str) -> list[str]:
    """List the files that an entry names, sorted, relative to data_root if the entry is.

    An entry that matches nothing is returned unchanged, as a missing path. Raises DataError for an empty range, a
    broken list of shards and a folder without data.
    """
    path = remote.join(root, entry)
    names = expand_ranges(entry)
    if names != [entry]:
        return [file for name in names for file in files_of_entry(root, name)]
    if any(character in entry for character in remote.GLOB_CHARACTERS) and not remote.exists(path):
        found = remote.matches(root, entry)
        return [file for name in found for file in _files_of_match(root, name)] or [entry]
    if remote.is_folder(path):
        return files_of_folder(path, entry)
    if path.endswith(".json"):
        folder = entry.rpartition("/")[0]
        return [remote.join(folder, name) if folder else name for name in _shards(path)] or [entry]
    return [entry]


def _files_of_match(root: str, name: str) -> list[str]:
    """The files of what a pattern matched, which may be a folder unless it is called as a data file."""
    path = remote.join(root, name)
    is_folder = ending(name) not in FORMAT_OF_ENDING and remote.is_folder(path)
    return files_of_folder(path, name) if is_folder else [name]


def expand_ranges(entry: str) -> list[str]:
    """Expand {first..last} in an entry; an entry without a range is returned. Raises DataError for an empty range."""
    match = RANGE.search(entry)
    if match is None:
        return [entry]
    first, last = match.groups()
    if int(first) > int(last):
        raise DataError(f"the range {match[0]} of {entry} is empty; fix: write {{{last}..{first}}}")
    before, after = entry[: match.start()], entry[match.end() :]
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [one for number in numbers for one in expand_ranges(before + number + after)]


def _shards(path: str) -> list[str]:
    """List the shards that a list of wids names; none if the file is not such a list."""
    if not remote.exists(path):
        return []
    with remote.open_file(path) as file:
        if SHARD_LIST not in file.read(4096).decode(errors="replace"):
            return []
        file.seek(0)
        try:
            value: Any = json.loads(file.read())
            return [str(shard["url"]) for shard in value["shardlist"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a list of shards: {type(error).__name__} {error}") from error
