"""The media files of a sample: paths, parts of files, or bytes in memory; and how they are opened."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from longvita.data.errors import DataError, MediaError, Reason, one_line
from longvita.data.file_kinds import HEAD_BYTES, FileKind, placeholder_of
from longvita.data.storage import remote
from longvita.data.storage.hidden import is_hidden
from longvita.data.storage.retries import store_failure
from longvita.errors import shorten

BROKEN = {"picture": Reason.BROKEN_PICTURE, "video": Reason.BROKEN_VIDEO}
MAX_READ_BYTES = 1 << 20
"""Largest request to a store, bytes: a picture in one request, a video as its decoder reads it."""


@dataclass(frozen=True)
class FilePart:
    """A range of a file, such as a member of a tar archive, or a complete file that the sample does not name itself."""

    path: str
    """Path or address of the file."""
    offset: int = 0
    """First byte."""
    size: int | None = None
    """Bytes; up to the file's end when None."""
    name: str = ""
    """Name of the part in the file."""
    content: bytes | None = field(default=None, repr=False, compare=False)
    """Its bytes if they are read already."""

    def __str__(self) -> str:
        return f"{self.path}[{self.name}]" if self.name and not self.path.endswith(self.name) else self.path


class EmbeddedMedia(ABC):
    """A picture or video stored in the data file."""

    name: str
    """Name for messages."""

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def read(self) -> bytes:
        """Return the bytes of the picture or video file. Raises OSError and ValueError."""

    @abstractmethod
    def unique_name(self) -> list:
        """Return a unique name as JSON values, without reading any file."""

    @abstractmethod
    def place(self) -> tuple[str | None, str]:
        """Return the file that it is read from, None if it is in memory, and a text that tells it from others there."""


@dataclass(frozen=True)
class InlineMedia(EmbeddedMedia):
    """A picture or video of the data file whose bytes are in memory."""

    content: bytes = field(repr=False)
    """The bytes of a picture or video file."""
    name: str

    @override
    def read(self) -> bytes:
        return self.content

    @override
    def unique_name(self) -> list:
        return [self.name, hashlib.blake2b(self.content, digest_size=16).hexdigest()]

    @override
    def place(self) -> tuple[None, str]:
        return None, str(self.unique_name())


MediaRef = str | FilePart | EmbeddedMedia
"""Reference of a sample to a picture or video; a string is a path below the media root."""
MediaFile = str | os.PathLike | FilePart | EmbeddedMedia
"""A media file that can be opened; `resolve` returns it for a MediaRef."""
Heartbeat = Callable[[], None]
"""Called at each step of progress."""


def name_of(ref: MediaRef) -> str | list:
    """A unique name of a media file as JSON values, without reading any file."""
    if isinstance(ref, FilePart):
        return [ref.path, ref.offset, ref.name]
    return ref.unique_name() if isinstance(ref, EmbeddedMedia) else ref


@dataclass(frozen=True)
class FileIdentity:
    """The current state of a file; a rewritten file has another identity."""

    path: str
    """Path with the bounds of a part, absolute and without links to folders; an address with what its store reports of
    the file; or the hash of inline bytes."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Modification time, nanoseconds; 0 if the file is not local."""

    @classmethod
    def of(cls, source: MediaFile) -> FileIdentity:
        """The identity of a media file in its current state. Raises OSError."""
        path, part = place_of(source)
        if path is None:
            return cls(part, 0, 0)
        if part:
            return cls.of(path).part(part)
        if remote.is_remote(path):
            return cls(f"{path} {remote.version(path)}", 0, 0)
        status = os.stat(path)
        return cls(_without_links(path), status.st_size, status.st_mtime_ns)

    def part(self, name: str) -> FileIdentity:
        """The identity of a part of this file."""
        return FileIdentity(self.path + name, self.size, self.mtime_ns)


def place_of(source: MediaFile) -> tuple[str | None, str]:
    """The file that a media file is read from, None if it is in memory, and the name of its part of it, if any."""
    if isinstance(source, EmbeddedMedia):
        return source.place()
    if isinstance(source, FilePart):
        is_part = source.offset or source.size is not None
        return source.path, f"[{source.offset}:{source.size}]" if is_part else ""
    return os.fspath(source), ""


def _without_links(path: str) -> str:
    """The absolute path of a file, by the real path of its folder: one folder of pictures may have several names."""
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(os.path.abspath(folder)), name)


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def resolve(ref: MediaRef, root: str | os.PathLike) -> Path | FilePart | EmbeddedMedia:
    """The media file of a reference. Raises MediaError for a path that leads outside the media root."""
    if not isinstance(ref, str):
        return ref
    if leads_outside(ref, root):
        if remote.is_remote(ref):
            raise MediaError(
                Reason.OUTSIDE_MEDIA_ROOT,
                f"{shorten(ref)} is an address outside the media root {root}; fix: download it, or set media_root "
                f"to that address, such as {shorten(remote.host_of(ref))}",
            )
        raise MediaError(
            Reason.OUTSIDE_MEDIA_ROOT,
            f"{shorten(ref)} leads outside the media root {root}; fix: {_fix_of_outside(ref, root)}",
        )
    path = remote.join(root, ref)
    return FilePart(path) if remote.is_remote(path) else Path(path)


def _fix_of_outside(path: str, root: str | os.PathLike) -> str:
    """What to do about a path that leads outside the media root: one with a slash too many may be meant below it."""
    inner = path.lstrip("/")
    is_below = path != inner and not leads_outside(inner, root) and remote.exists(remote.join(root, inner))
    if is_below and not remote.exists(path):
        return f"remove its leading slash, since {shorten(inner)} is in the media root"
    return "set data.media_root (or the source's media_root) to a folder that holds it, / for any path"


def leads_outside(path: str, root: str | os.PathLike) -> bool:
    """Whether a path leads out of a root, by its text alone; links are not followed."""
    if not path.startswith("/") and ".." not in path and "://" not in path:
        return False
    full, top = remote.join(root, path), str(root)
    if remote.is_remote(top) or remote.is_remote(full):
        return ".." in path.split("/") or not full.startswith(remote.as_folder(top))
    full, top = os.path.abspath(full), os.path.abspath(top)
    return os.path.commonpath([full, top]) != top


def as_media_file(source: MediaFile) -> Path | FilePart | EmbeddedMedia:
    """Convert a path to Path; anything else is returned unchanged."""
    return source if isinstance(source, FilePart | EmbeddedMedia) else Path(source)


def is_folder(source: MediaFile) -> bool:
    """Whether a source is a folder of frames."""
    if isinstance(source, EmbeddedMedia) or (isinstance(source, FilePart) and source.size is not None):
        return False
    return remote.is_folder(_path_of(source))


def _path_of(source: str | os.PathLike | FilePart) -> str:
    return source.path if isinstance(source, FilePart) else str(source)


def files_in(folder: MediaFile) -> list[tuple[str, MediaFile]]:
    """Name and source of each entry of a folder that is not hidden."""
    if isinstance(folder, FilePart):
        names = [name for name in remote.files_below(folder.path) if "/" not in name]
        return [(name, FilePart(remote.join(folder.path, name))) for name in names]
    return [(path.name, path) for path in Path(str(folder)).iterdir() if not is_hidden(path.name)]


def check_regular_file(source: MediaFile, noun: str) -> None:
    """Raise MediaError if a path does not exist, or is no regular file and might block its reader."""
    if isinstance(source, EmbeddedMedia) or remote.is_remote(_path_of(source)):
        return
    path = _path_of(source)
    if not os.path.exists(path):
        raise MediaError(Reason.MISSING_FILE, f"{noun} {shorten(path)} does not exist")
    if not os.path.isfile(path):
        raise MediaError(BROKEN[noun], f"{noun} {shorten(path)} is no regular file")


@contextlib.contextmanager
def reader_errors(path: MediaFile, noun: str) -> Iterator[None]:
    """Check that a picture or video (`noun`) is a regular file, and name it in the errors of the block."""
    check_regular_file(path, noun)
    try:
        yield
    except MediaError as error:
        raise MediaError(error.reason, f"{noun} {shorten(path)}: {error.detail}") from error
    except DataError:  # A package for the store is missing, which is no error of the file.
        raise
    except Exception as error:  # A damaged file may fail in any part of Pillow, FFmpeg or PyAV.
        why = _placeholder(path) if store_failure(error) is None else None
        detail = f"{noun} {shorten(path)} cannot be opened: {why or one_line(error)}"
        raise MediaError(BROKEN[noun], detail) from error


def _placeholder(source: MediaFile) -> FileKind | None:
    """What is in place of a file that cannot be opened, such as a Git LFS pointer."""
    with contextlib.suppress(Exception), opened(source) as file:  # The first error is the one to report.
        with open(file, "rb") if isinstance(file, str) else contextlib.nullcontext(file) as content:
            return placeholder_of(content.read(HEAD_BYTES))
    return None


@contextlib.contextmanager
def opened(source: MediaFile) -> Iterator[str | BinaryIO]:
    """Open a source for Pillow, PyAV and decord: yields a local path, or a file object that is closed at the end.

    Raises MediaError if the file does not exist.
    """
    if not isinstance(source, FilePart | EmbeddedMedia):
        yield str(source)
        return
    with _open(source) as file:
        yield file


def read_bytes(source: MediaFile) -> bytes:
    """All bytes of a picture or video. Raises MediaError if the file does not exist, OSError if the read fails."""
    with opened(source) as file:
        return Path(file).read_bytes() if isinstance(file, str) else file.read()


def _open(source: FilePart | EmbeddedMedia) -> BinaryIO:
    if isinstance(source, EmbeddedMedia):
        return io.BytesIO(source.read())
    if source.content is not None:
        return io.BytesIO(source.content)
    try:
        file = remote.open_file(source.path, min(source.size or MAX_READ_BYTES, MAX_READ_BYTES))
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING_FILE, f"{shorten(source)} does not exist") from error
    if source.offset == 0 and source.size is None:
        return file
    end = remote.size(source.path) if source.size is None else source.offset + source.size
    return io.BufferedReader(_Window(file, source.offset, end))


class _Window(io.RawIOBase):
    """The bytes [start, end) of a file as a file object."""

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
