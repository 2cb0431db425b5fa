"""The files that one entry of data_paths stands for, by patterns, ranges, folders of tables and lists of shards."""

from __future__ import annotations

import json
import re
from typing import Any

from longvita.data import remote
from longvita.data.errors import DataError
from longvita.data.media.kinds import ending

FORMAT_OF_ENDING = {
    "jsonl": "jsonl",
    "json": "json",
    "parquet": "parquet",
    "arrow": "parquet",
    "tar": "webdataset",
}
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""{000..127}: both ends belong to it, and the first one's digits are the number's least width."""
TABLES = ("*.arrow", "data/*.parquet", "*.parquet")
"""Where a folder of `datasets` or of the Hub has its tables; the first that is there counts."""
SPLIT = "train"
"""Beginning of the names of a folder's files that are trained on, where it has such."""
SHARD_LIST = "wids-shard-index"
"""How the kind of a list of WebDataset shards begins."""


def format_of(path: str, given: str | None = None) -> str:
    """Name of a data file's format: the given one, or by the end of its name; where that tells nothing, JSONL for a
    file and captions for a folder.
    """
    by_name = given or FORMAT_OF_ENDING.get(ending(path))
    return by_name or ("captions" if remote.is_folder(path) else "jsonl")


def data_files(root: str, entry: str) -> list[str]:
    """The files of an entry below data_root, sorted, a path as it is. Raises DataError for a pattern of no file."""
    path = remote.join(root, entry)
    if RANGE.search(entry):
        return [file for name in _of_range(entry) for file in data_files(root, name)]
    if _is_pattern(entry) and not remote.exists(path):
        found = [remote.join(root, match) for match in remote.matches(root, entry)]
        if not found:
            raise DataError(f"no file matches {path}; see data.data_root and the source's data_paths")
        return found
    if path.endswith(".json"):
        return _shards(path) or [path]
    return _tables(path) or [path]


def _is_pattern(entry: str) -> bool:
    return any(character in entry for character in remote.GLOB_CHARACTERS)


def _of_range(entry: str) -> list[str]:
    match = RANGE.search(entry)
    if match is None:
        return [entry]
    first, last = match.groups()
    if int(first) > int(last):
        raise DataError(f"the range {match[0]} of {entry} holds nothing: write {{{last}..{first}}}")
    numbers = range(int(first), int(last) + 1)
    return [f"{entry[: match.start()]}{number:0{len(first)}}{entry[match.end() :]}" for number in numbers]


def _tables(path: str) -> list[str]:
    """Tables of a folder of `datasets`: those of its training split where it has one."""
    if not remote.is_folder(path):
        return []
    for pattern in TABLES:
        found = [remote.join(path, match) for match in remote.matches(path, pattern)]
        train = [file for file in found if file.rpartition("/")[2].startswith(SPLIT)]
        if found:
            return train or found
    return []


def _shards(path: str) -> list[str]:
    """The shards of a list that wids wrote, relative to it; none where the file is something else."""
    if not remote.exists(path):
        return []
    with remote.open_file(path) as file:
        if SHARD_LIST not in file.read(4096).decode(errors="replace"):
            return []
        file.seek(0)
        try:
            value: Any = json.loads(file.read())
            names = [shard["url"] for shard in value["shardlist"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no list of shards: {type(error).__name__} {error}") from error
    folder = path.rpartition("/")[0]
    return [remote.join(folder, name) if folder else name for name in names]
