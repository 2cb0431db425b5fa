"""Files of the Hugging Face Hub that a mix needs, and the path of each below the folder to fill, from the config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from longvita.config.schema import Config, DatasetConfig
from longvita.data.errors import DataError
from longvita.data.formats.paths import expand_ranges

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_ARCHIVE = re.compile(
    r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|zip|z\d\d|7z|parquet)(\.[a-z]{2}|\.\d{2,3}|[-_.]?part[-_.]?\w+)?\Z", re.IGNORECASE
)
"""The end of the name of an archive, or of one of the parts that it was split into."""


class FetchState(StrEnum):
    """State of a wanted file."""

    WANTED = "wanted"
    FETCHED = "fetched"
    THERE = "there"  # complete before this run
    MISSING = "missing"  # not in the data set
    GATED = "gated"  # needs a login and accepted terms
    FAILED = "failed"


@dataclass
class WantedFile:
    """A file of a Hub data set, its path here, and its state.

    Until the data set is listed, `path` may be a pattern or a folder, or "" for all archives.
    """

    source: str  # of the mix, that needs it
    repository: str  # data set, OWNER/NAME
    path: str  # in the data set
    target: str  # below the folder that is filled
    size: int = 0  # bytes
    state: FetchState = FetchState.WANTED
    detail: str = ""  # the problem and its fix
    revision: str = ""  # commit of the data set
    digest: str = ""  # sha256 of the content (LFS), or git's sha1 of a small file


def choose_sources(config: Config, names: Sequence[str]) -> dict[str, DatasetConfig]:
    """The sources of a config with a ratio above 0, held-out ones as validation/NAME: the named ones, or all.

    Raises DataError for an unknown name, or if no chosen source names a data set of the Hub.
    """
    held_out = {f"validation/{name}": dataset for name, dataset in config.data.validation.items()}
    used = {name: dataset for name, dataset in {**config.data.dataset, **held_out}.items() if dataset.ratio > 0}
    unknown = [name for name in names if name not in used]
    if unknown:
        known = ", ".join(used) or "none"
        raise DataError(f"--source {unknown[0]}: the mix has no such source; with a ratio above 0 are {known}")
    chosen = {name: dataset for name, dataset in used.items() if name in names or not names}
    if not any(hub_data_sets(dataset) for dataset in chosen.values()):
        raise DataError(
            "nothing to fetch: none of the sources names a data set of the Hugging Face Hub; "
            "set found_at (OWNER/NAME) in data.dataset.NAME"
        )
    return chosen


def hub_data_sets(dataset: DatasetConfig) -> list[str]:
    """The places of a source that are data sets of the Hub; the others are pages."""
    return [place for place in dataset.found_at if _REPOSITORY.fullmatch(place)]


def wanted_files(config: Config, sources: dict[str, DatasetConfig], media: bool) -> list[WantedFile]:
    """The data files of the sources that are on the Hub, each once; with `media` the archives of found_at too.

    Raises DataError for a path out of the folder.
    """
    files: dict[str, WantedFile] = {}
    for name, dataset in sources.items():
        places = hub_data_sets(dataset)
        files_at = dataset.files_at if dataset.files_at is not None else config.data.files_at
        for path in (one for entry in dataset.data_paths for one in expand_ranges(entry) if places):
            target = check_inside(path, f"source {name!r}: data path")
            full = check_inside(str(PurePosixPath(files_at, target)), f"source {name!r}: files_at")
            repository, inner = "/".join(full.split("/")[:2]), "/".join(full.split("/")[2:])
            if not inner or not _REPOSITORY.fullmatch(repository):
                raise DataError(
                    f"source {name!r}: files_at {files_at!r} and data path {target!r} name no file of a Hub data set; "
                    "together they must be OWNER/NAME/PATH"
                )
            files.setdefault(target, WantedFile(name, repository, inner, target))
        if media:
            for place in places:
                files.setdefault(f"{place}/", WantedFile(name, place, "", place))
    return list(files.values())


def matching(wanted: WantedFile, paths: Iterable[str]) -> dict[str, str]:
    """Of a data set's paths, those that are the wanted one or fit its pattern, folder or archives; path to target.

    Raises DataError for a path out of the folder.
    """
    hub_folder, local_folder = "", wanted.target.removesuffix(wanted.path)
    if wanted.path.endswith(wanted.target):
        hub_folder, local_folder = wanted.path.removesuffix(wanted.target), ""
    length = len(PurePosixPath(wanted.path).parts)
    found = {}
    for path in paths:
        file = PurePosixPath(path)
        if not wanted.path:
            fits = _ARCHIVE.search(path) is not None
        else:
            fits = file.is_relative_to(wanted.path) or (len(file.parts) == length and file.match(wanted.path))
        if fits:
            inside = check_inside(path, f"data set {wanted.repository}: file")
            found[path] = str(PurePosixPath(local_folder, inside.removeprefix(hub_folder)))
    return found


def check_inside(path: str, what: str) -> str:
    """The path in its plain form. Raises DataError unless it leads to a file below the folder it is relative to."""
    plain = PurePosixPath(path)
    if not plain.parts or plain.is_absolute() or ".." in plain.parts or "\\" in path or "\0" in path:
        raise DataError(
            f"{what} {path!r} is refused: only files below the target folder are written; give a relative path "
            "without '..'"
        )
    return str(plain)
