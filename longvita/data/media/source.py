"""What a sample's picture or video may be: a path, a part of a file, or bytes in memory; and how it is opened."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from longvita.data.errors import MediaError, Reason
from longvita.data.storage import remote

MAX_READ_BYTES = 1 << 20
"""Most bytes that a store is asked for at once: a picture whole, of a video what decoders need next."""


@dataclass(frozen=True)
class FilePart:
    """Bytes of a file, such as a member of a tar archive, or a whole file that is no path of the sample's own."""

    path: str
    """The file: a path or an address."""
    offset: int = 0
    """Its first byte."""
    size: int | None = None
    """Its bytes; to the file's end when None."""
    name: str = ""
    """What the part is called in the file."""

    def __str__(self) -> str:
        return f"{self.path}[{self.name}]" if self.name and not self.path.endswith(self.name) else self.path


@dataclass(frozen=True)
class InlineMedia:
    """A picture or video that stands in the data file itself."""

    content: bytes = field(repr=False)
    """The bytes of a picture or video file."""
    name: str
    """What it is called, for people."""

    def __str__(self) -> str:
        return self.name


MediaRef = str | FilePart | InlineMedia
"""A picture or video of a sample; a string is a path below the media root."""
MediaFile = str | os.PathLike | FilePart | InlineMedia
"""What the readers open: `resolve` makes it of a medium."""


def name_of(medium: MediaRef) -> str | list:
    """What tells a medium from others without a look at any file, as JSON values."""
    if isinstance(medium, FilePart):
        return [medium.path, medium.offset, medium.name]
    if isinstance(medium, InlineMedia):
        return [medium.name, hashlib.blake2b(medium.content, digest_size=16).hexdigest()]
    return medium


def resolve(medium: MediaRef, root: str | os.PathLike) -> Path | FilePart | InlineMedia:
    """What a reader opens for a sample's medium. Raises MediaError for a path that leads outside the media root."""
    if not isinstance(medium, str):
        return medium
    if leads_outside(medium, root):
        raise MediaError(
            Reason.OUTSIDE_MEDIA_ROOT,
            f"{medium} leads outside the media root {root}; set data.media_root (or the source's media_root) to a "
            "folder that holds it, / for any path",
        )
    path = remote.join(root, medium)
    return FilePart(path) if remote.is_remote(path) else Path(path)


def leads_outside(path: str, root: str | os.PathLike) -> bool:
    """Whether a path is not below a root by its words alone; links are not followed."""
    if not path.startswith("/") and ".." not in path and "://" not in path:
        return False
    whole, top = remote.join(root, path), str(root)
    if remote.is_remote(top) or remote.is_remote(whole):
        return ".." in path.split("/") or not whole.startswith(remote.as_folder(top))
    whole, top = os.path.abspath(whole), os.path.abspath(top)
    return os.path.commonpath([whole, top]) != top


def as_media_file(source: MediaFile) -> Path | FilePart | InlineMedia:
    """A path as a Path, anything else as it is."""
    return source if isinstance(source, FilePart | InlineMedia) else Path(source)


def file_of(source: MediaFile) -> str | None:
    """The file of this machine that holds a source, None where there is none."""
    if isinstance(source, InlineMedia):
        return None
    path = source.path if isinstance(source, FilePart) else str(source)
    return None if remote.is_remote(path) else path


def is_folder(source: MediaFile) -> bool:
    """Whether a source is a folder, of frames."""
    if isinstance(source, InlineMedia) or (isinstance(source, FilePart) and source.size is not None):
        return False
    return remote.is_folder(source.path if isinstance(source, FilePart) else str(source))


def files_in(folder: MediaFile) -> list[tuple[str, MediaFile]]:
    """Name and source of each entry of a folder."""
    if isinstance(folder, FilePart):
        names = [name for name in remote.files_below(folder.path) if "/" not in name]
        return [(name, FilePart(remote.join(folder.path, name))) for name in names]
    return [(path.name, path) for path in Path(str(folder)).iterdir()]


@contextmanager
def opened(source: MediaFile) -> Iterator[str | BinaryIO]:
    """What Pillow, PyAV and decord take: a path of this machine, or a file object that is closed in the end.

    Raises MediaError if there is no such file.
    """
    if not isinstance(source, FilePart | InlineMedia):
        yield str(source)
        return
    with _open(source) as file:
        yield file


def read_bytes(source: MediaFile) -> bytes:
    """All bytes of a picture or video. Raises MediaError if there is no such file, OSError if it can't be read."""
    with opened(source) as file:
        return Path(file).read_bytes() if isinstance(file, str) else file.read()


def _open(source: FilePart | InlineMedia) -> BinaryIO:
    if isinstance(source, InlineMedia):
        return io.BytesIO(source.content)
    try:
        file = remote.open_file(source.path, min(source.size or MAX_READ_BYTES, MAX_READ_BYTES))
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING_FILE, f"{source} does not exist") from error
    if source.offset == 0 and source.size is None:
        return file
    end = remote.size(source.path) if source.size is None else source.offset + source.size
    return io.BufferedReader(_Window(file, source.offset, end))


class _Window(io.RawIOBase):
    """The bytes [start, end) of a file as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._start, self._end = file, start, end
        file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(max(0, min(len(buffer), self._end - self._file.tell())))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: self._start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._end}
        return self._file.seek(max(self._start, bases[whence] + offset)) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def close(self) -> None:
        self._file.close()
        super().close()
