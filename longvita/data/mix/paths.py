"""The files that one entry of data_paths stands for, by patterns, ranges, folders of tables and lists of shards."""

from __future__ import annotations

import json
import re
from typing import Any

from longvita.config.schema import DataConfig
from longvita.data.errors import DataError
from longvita.data.media.suffixes import ending
from longvita.data.storage import remote

FORMAT_OF_ENDING = {
    "jsonl": "jsonl",
    "json": "json",
    "parquet": "parquet",
    "arrow": "parquet",
    "tar": "webdataset",
}
NO_FORMAT = ("gz", "tgz", "zip", "bz2", "xz", "zst", "7z", "rar", "csv", "tsv", "xlsx", "sqlite", "lmdb", "npz")
"""Ends of the names of files that are surely not JSONL."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""{000..127}: both ends belong to it, and the first one's digits are the number's least width."""
TABLES = ("*.arrow", "train/*.arrow", "data/*.parquet", "*.parquet")
"""Where a folder of `datasets` or of the Hub has its tables; the first that is there counts."""
SPLIT = "train"
"""Beginning of the names of a folder's files that are trained on, where it has such."""
CACHE = "cache-"
"""Beginning of the names of the files in which `datasets` keeps what it computed."""
SHARD_LIST = "wids-shard-index"
"""How the kind of a list of WebDataset shards begins."""


def format_of(path: str, given: str | None = None) -> str:
    """Name of a data file's format: the given one, or by the end of its name; where that tells nothing, JSONL for a
    file and captions for a folder.

    Raises DataError for a packed file, and for a table that is none of the formats.
    """
    by_name = given or FORMAT_OF_ENDING.get(ending(path))
    if by_name is None and ending(path) in NO_FORMAT and not remote.is_folder(path):
        raise DataError(
            f"{path}: no format reads .{ending(path)} files; unpack or convert it, or set the source's format if the "
            "name misleads"
        )
    return by_name or ("captions" if remote.is_folder(path) else "jsonl")


def data_file(data: DataConfig, path: str) -> str:
    """A path of data_paths below data.data_root; itself where it is absolute or has a scheme."""
    return remote.join(data.data_root, path)


def files_of_entry(root: str, entry: str) -> list[str]:
    """The files that an entry stands for, relative to data_root as it is, sorted.

    An entry that finds nothing stands for itself: a path where nothing is. Raises DataError for a range that holds
    nothing and for a list of shards that is none.
    """
    path = remote.join(root, entry)
    names = expand_ranges(entry)
    if names != [entry]:
        return [file for name in names for file in files_of_entry(root, name)]
    if any(character in entry for character in remote.GLOB_CHARACTERS) and not remote.exists(path):
        return remote.matches(root, entry) or [entry]
    if path.endswith(".json"):
        folder = entry.rpartition("/")[0]
        return [remote.join(folder, name) if folder else name for name in _shards(path)] or [entry]
    return [remote.join(entry, name) for name in _tables(path)] or [entry]


def expand_ranges(entry: str) -> list[str]:
    """The names that an entry with {first..last} stands for, or the entry. Raises DataError for one that is empty."""
    match = RANGE.search(entry)
    if match is None:
        return [entry]
    first, last = match.groups()
    if int(first) > int(last):
        raise DataError(f"the range {match[0]} of {entry} holds nothing: write {{{last}..{first}}}")
    names = (
        f"{entry[: match.start()]}{number:0{len(first)}}{entry[match.end() :]}"
        for number in range(int(first), int(last) + 1)
    )
    return [one for name in names for one in expand_ranges(name)]


def _tables(path: str) -> list[str]:
    """Tables of a folder of `datasets`, relative to it: those of its training split where it has one."""
    if not remote.is_folder(path):
        return []
    for pattern in TABLES:
        found = [file for file in remote.matches(path, pattern) if not file.rpartition("/")[2].startswith(CACHE)]
        train = [file for file in found if file.rpartition("/")[2].startswith(SPLIT)]
        if found:
            return train or found
    return []


def _shards(path: str) -> list[str]:
    """The shards of a list that wids wrote, as it names them; none where the file is something else."""
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
            raise DataError(f"{path} is no list of shards: {type(error).__name__} {error}") from error
