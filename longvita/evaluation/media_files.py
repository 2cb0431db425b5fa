"""Files of a data set by name, where it was unpacked or still lies in .zip files."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from longvita.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class DataSetError(UserError, ValueError):
    """A data set that is not as it should be."""


class MediaFiles:
    """The files below a folder, and in its .zip files, whose endings are among `suffixes`; by name without ending.

    Raises DataSetError for a .zip file that cannot be read.
    """

    def __init__(self, folder: Path, suffixes: Collection[str]):
        self.folder = folder
        self._paths: dict[str, Path] = {}
        self._packed: dict[str, tuple[Path, str]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in suffixes:
                self._paths.setdefault(path.stem, path)
            elif path.suffix.lower() == ".zip":
                self._look_into(path, suffixes)

    def __contains__(self, name: str) -> bool:
        return name in self._paths or name in self._packed

    def path(self, name: str, below: str) -> Path:
        """Where the file is. One that is packed is unpacked into the folder `below` in the data set's first.

        Raises DataSetError where there is none, or no room for it.
        """
        if name in self._paths:
            return self._paths[name]
        if name not in self._packed:
            raise DataSetError(f"{self.folder} holds no file of {name}, neither unpacked nor in a .zip file")
        archive, member = self._packed[name]
        # The name alone of what the archive says, so that nothing is written elsewhere.
        target = self.folder / below / PurePosixPath(member).name
        # One process at a time asks for a video's files, so what an earlier one left half-done is written over.
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

    def _look_into(self, archive: Path, suffixes: Collection[str]) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataSetError(f"{archive} cannot be read: {error}; download it again") from error
        for member in members:
            name = PurePosixPath(member)
            hidden = name.name.startswith(".") or "__MACOSX" in name.parts
            if name.suffix.lower() in suffixes and not hidden:
                self._packed.setdefault(name.stem, (archive, member))
