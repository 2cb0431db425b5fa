"""Files of a data set: media by name, unpacked or still in .zip files, and rows of Parquet tables."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from longvita.data.storage.hidden import is_hidden
from longvita.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class DataSetError(UserError, ValueError):
    """A data set with missing or damaged files or values."""


class MediaFiles:
    """Index the files with one of `suffixes` below a folder and in its .zip files, by name without suffix.

    Raises DataSetError for a .zip file that cannot be read.
    """

    def __init__(self, folder: Path, suffixes: Collection[str]):
        self.folder = folder
        self._paths: dict[str, Path] = {}
        self._packed: dict[str, tuple[Path, str]] = {}
        for path in files_below(folder):
            if path.suffix.lower() in suffixes:
                self._paths.setdefault(path.stem, path)
            elif path.suffix.lower() == ".zip":
                self._index_archive(path, suffixes)

    def __contains__(self, name: str) -> bool:
        return name in self._paths or name in self._packed

    def path(self, name: str, below: str) -> Path:
        """Return the path of a file, after unpacking it into the folder `below` of the data set if it is in a .zip.

        Raises DataSetError where there is no such file, or no room for it.
        """
        if name in self._paths:
            return self._paths[name]
        if name not in self._packed:
            raise DataSetError(f"{self.folder} holds no file of {name}, neither unpacked nor in a .zip file")
        archive, member = self._packed[name]
        # Only the last part of the archive's path, so that nothing is written outside the folder.
        target = self.folder / below / PurePosixPath(member).name
        # Only one process at a time unpacks a file, so a partial file of an interrupted one can be overwritten.
        part = target.with_name(f"{target.name}.part")
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(archive) as opened, opened.open(member) as source, part.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                part.replace(target)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise DataSetError(
                f"{member} of {archive} cannot be unpacked into {target.parent}: {error}; unpack it there by hand"
            ) from error
        self._paths[name] = target
        return target

    def _index_archive(self, archive: Path, suffixes: Collection[str]) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataSetError(f"{archive} cannot be read: {error}; download it again") from error
        for member in members:
            name = PurePosixPath(member)
            if name.suffix.lower() in suffixes and not is_hidden(member):
                self._packed.setdefault(name.stem, (archive, member))


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder and below the folders that it links to, sorted, without hidden ones."""
    found: list[Path] = []
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        # A link may lead to a folder that is listed already, or back to one above it.
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in sorted(folders) if not is_hidden(name)]
        found += [Path(place, name) for name in files if not is_hidden(name)]
    return sorted(found)


def read_rows(paths: Sequence[Path], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read some columns of Parquet files as rows. Raises DataSetError for a file that is damaged or lacks a column."""
    from pyarrow import ArrowException, parquet

    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            names = parquet.read_schema(path).names
            missing = [column for column in columns if column not in names]
            if missing:
                raise DataSetError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names)}")
            rows += parquet.read_table(path, columns=list(columns)).to_pylist()
        except (ArrowException, OSError) as error:
            raise DataSetError(f"{path} cannot be read as Parquet: {error}; download it again") from error
    return rows
