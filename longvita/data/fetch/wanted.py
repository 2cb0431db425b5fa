"""Which files of the Hugging Face Hub a mix wants, and where each goes: from the config alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from longvita.config.schema import Config, DatasetConfig
from longvita.data.errors import DataError
from longvita.data.mix.paths import expand_ranges

HELD_OUT = "validation/"
"""Start of the names of held-out sources."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_ARCHIVE = re.compile(
    r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|zip|z\d\d|7z|parquet)(\.[a-z]{2}|\.\d{2,3}|[-_.]?part[-_.]?\w+)?", re.IGNORECASE
)
"""The end of a name that holds many pictures or videos: an archive, or one of the pieces that it was cut into."""


@dataclass(frozen=True)
class Wanted:
    """One file of a Hub data set, and its place."""

    source: str
    """Name of the mix's source that it is for."""
    repository: str
    """Data set of the Hub, OWNER/NAME."""
    path: str
    """Path in the data set."""
    target: str
    """Path below the folder that is filled."""


def choose_sources(config: Config, names: Sequence[str]) -> dict[str, DatasetConfig]:
    """The sources that a config takes, held-out ones as validation/NAME; of these the named ones, or all.

    Raises DataError if a name is none of them, or no source is left that says where it is found.
    """
    held_out = {HELD_OUT + name: dataset for name, dataset in config.data.validation.items()}
    taken = {name: dataset for name, dataset in {**config.data.dataset, **held_out}.items() if dataset.ratio > 0}
    unknown = [name for name in names if name not in taken]
    if unknown:
        known = ", ".join(taken) or "none"
        raise DataError(f"--source {unknown[0]}: the mix takes no such source; with a ratio above 0 are {known}")
    chosen = {name: dataset for name, dataset in taken.items() if name in names or not names}
    if not any(hub_data_sets(dataset) for dataset in chosen.values()):
        raise DataError(
            "nothing to fetch: none of the sources names a data set of the Hugging Face Hub; "
            "set found_at (OWNER/NAME) in data.dataset.NAME"
        )
    return chosen


def hub_data_sets(dataset: DatasetConfig) -> list[str]:
    """The places of a source that are data sets of the Hub; the others are pages."""
    return [place for place in dataset.found_at if _REPOSITORY.fullmatch(place)]


def pages(dataset: DatasetConfig) -> list[str]:
    """The places of a source that can't be fetched from the Hub."""
    return [place for place in dataset.found_at if not _REPOSITORY.fullmatch(place)]


def wanted_data_files(config: Config, sources: dict[str, DatasetConfig]) -> list[Wanted]:
    """The data files of the sources that are on the Hub, each once. Raises DataError for a path out of the folder."""
    files: dict[str, Wanted] = {}
    for name, dataset in sources.items():
        if not hub_data_sets(dataset):
            continue
        files_at = dataset.files_at if dataset.files_at is not None else config.data.files_at
        for path in (one for entry in dataset.data_paths for one in expand_ranges(entry)):
            target = check_inside(path, f"source {name!r}: data path")
            repository, inner = _split(files_at, target, name)
            files.setdefault(target, Wanted(name, repository, inner, target))
    return list(files.values())


def _split(files_at: str, path: str, source: str) -> tuple[str, str]:
    """Data set, and path in it, of files_at/path."""
    parts = PurePosixPath(check_inside(str(PurePosixPath(files_at, path)), f"source {source!r}: files_at")).parts
    repository = "/".join(parts[:2])
    if len(parts) < 3 or not _REPOSITORY.fullmatch(repository):
        raise DataError(
            f"source {source!r}: files_at {files_at!r} and data path {path!r} name no file of a Hub data set; "
            "together they must be OWNER/NAME/PATH"
        )
    return repository, "/".join(parts[2:])


def matching(item: Wanted, paths: Iterable[str]) -> list[Wanted]:
    """What a wanted path stands for among a data set's files: those that fit its pattern, or lie in its folder.

    Raises DataError for a path out of the folder that is filled.
    """
    wanted = item.path.split("/")
    found = []
    for path in paths:
        parts = path.split("/")
        in_folder = len(parts) > len(wanted) and parts[: len(wanted)] == wanted
        fits = len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
        if in_folder or fits:
            root = item.target.removesuffix(item.path)
            target = check_inside(root + path, f"data set {item.repository}: file")
            found.append(Wanted(item.source, item.repository, path, target))
    return found


def wanted_archives(source: str, repository: str, paths: Iterable[str]) -> list[Wanted]:
    """The archives among a data set's files; each goes to OWNER/NAME/PATH. Raises DataError for a path out of it."""
    chosen = [path for path in paths if _is_archive(path)]
    where = f"data set {repository}: file"
    return [Wanted(source, repository, path, f"{repository}/{check_inside(path, where)}") for path in chosen]


def _is_archive(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(_ARCHIVE.fullmatch(name, match.start()) for match in re.finditer(r"\.", name))


def check_inside(path: str, what: str) -> str:
    """The path in its plain form. Raises DataError unless it leads to a file below the folder it is relative to."""
    plain = PurePosixPath(path)
    if not plain.parts or plain.is_absolute() or ".." in plain.parts or "\\" in path or "\0" in path:
        raise DataError(
            f"{what} {path!r} is refused: only files below the target folder are written; give a relative path "
            "without '..'"
        )
    return str(plain)
