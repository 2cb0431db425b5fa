"""The files of a folder in data_paths: tables of one split, or captions; any other folder is refused with the fix."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

from longvita.data.errors import DataError
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.storage import remote
from longvita.errors import shorten

CAPTION_LISTS = ("metadata.jsonl", "captions.csv")
"""Files of a folder with the captions of its pictures and videos."""
TABLES = ("*.arrow", "train/*.arrow", "data/*.parquet", "*.parquet")
"""Where a folder of the library `datasets` or of the Hub has its tables; the first pattern with files is used."""
DATA_FILES = ("parquet", "arrow", "tar", "jsonl", "json")
"""Extensions of the files that a refused folder may mean, the first one that it has."""
SPLIT = "train"
"""Name of the training split, and beginning of the names of several."""
CACHE = "cache-"
"""Prefix of the names of the cache files of `datasets`."""
MAX_NAMED = 5
"""Most names of a folder in a message."""


def files_of_folder(path: str, entry: str) -> list[str]:
    """List the files of a folder that data_paths names `entry`: the tables of its training split, or all of them.

    A folder of captions is its own and only file; so is an empty one in a data file's place, which counts as missing.
    Raises DataError for a folder of anything else.
    """
    entry = entry.rstrip("/") or entry
    for pattern in TABLES:
        found = [name for name in remote.matches(path, pattern) if not _base(name).startswith(CACHE)]
        if found:
            _check_sidecars(path, entry, found)
            return [remote.join(entry, name) for name in _training_split(entry, found)]
    is_missing_file = ending(entry) in DATA_FILES and not remote.files_below(path)
    if not is_missing_file and not _holds_captions(path):
        raise DataError(_describe(path, entry))
    return [entry]


def _training_split(entry: str, found: list[str]) -> list[str]:
    """The files of the split train; all if none is a training split. Raises DataError for several of other names."""
    splits = collections.defaultdict(list)
    for name in found:
        splits[_split_of(name)].append(name)
    training = [split for split in splits if split.startswith(SPLIT)]
    if SPLIT not in splits and len(training) > 1:
        folder = remote.join(entry, found[0].rpartition("/")[0]).rstrip("/")
        raise DataError(
            f"the folder {entry} has the training splits {shorten(', '.join(training))}; fix: name those to train on, "
            f"such as data_paths: [{folder}/{training[0]}*.{ending(found[0])}]"
        )
    return splits[SPLIT] if SPLIT in splits else splits[training[0]] if training else found


def _split_of(name: str) -> str:
    """The split of a table: `train_sft` of data/train_sft-00000-of-00003.parquet, `train` of train_0.parquet."""
    return re.sub(r"[\d_]+$", "", re.split(r"[-.]", _base(name))[0])


def _check_sidecars(path: str, entry: str, tables: Sequence[str]) -> None:
    """Raise DataError for tables that are those of archives, as img2dataset writes them."""
    archives = {name.removesuffix(".tar") for name in remote.matches(path, "*.tar")}
    if any(name.rpartition(".")[0] in archives for name in tables):
        raise DataError(
            f"the folder {entry} has archives (.tar) with a table of the same name each, which has no images; fix: "
            f"data_paths: [{entry}/*.tar] for the archives, [{entry}/*.{ending(tables[0])}] for the tables"
        )


def _holds_captions(path: str) -> bool:
    """Whether a folder has a list of captions, or pictures or videos in it or below it."""
    here = remote.matches(path, "*")
    names = here if any(_is_media(name) or name in CAPTION_LISTS for name in here) else remote.files_below(path)
    return any(_is_media(name) or name in CAPTION_LISTS for name in names)


def _is_media(name: str) -> bool:
    return ending(name) in PICTURES or ending(name) in VIDEOS


def _describe(path: str, entry: str) -> str:
    """Say what a folder holds that is no data, with the fix."""
    files = remote.files_below(path)
    if not files:
        return f"the folder {entry} has no files; fix: fetch its files (longvita data fetch CONFIG), or leave it out"
    kinds = collections.Counter(f".{ending(name)}" if ending(name) else "without a suffix" for name in files)
    has = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(MAX_NAMED))
    folders = sorted({name.partition("/")[0] for name in files if "/" in name})
    inside = f" in the folders {shorten(', '.join(folders[:MAX_NAMED]))}" if folders else ""
    what = "has no tables of its own, and no images or videos"
    return f"the folder {entry} {what}; its files are {has}{inside}; fix: {_fix(entry, files)}"


def _fix(entry: str, files: Sequence[str]) -> str:
    """The pattern of the data files in a folder, and a folder of tables in it."""
    kind = next((kind for kind in DATA_FILES if any(ending(name) == kind for name in files)), None)
    if kind is None:
        return "name its data files in data_paths"
    found = [name for name in files if ending(name) == kind]
    prefix = f"{SPLIT}*" if any(_base(name).startswith(SPLIT) for name in found) else "*"
    depth = min(name.count("/") for name in found)
    pattern = f"data_paths: [{entry}/{'*/' * depth}{prefix}.{kind}]"
    folder = next(name for name in found if name.count("/") == depth).rpartition("/")[0]
    is_table = kind in ("parquet", "arrow")
    return f"{pattern}, or one of its folders: [{entry}/{folder}]" if folder and is_table else pattern


def _base(name: str) -> str:
    return name.rpartition("/")[2]
