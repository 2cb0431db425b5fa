"""Local and remote files: paths with a scheme (s3://, memory://, filecache::...) are opened by fsspec."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from longvita.data.errors import DataError
from longvita.data.storage.hidden import is_hidden
from longvita.errors import shorten

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

GLOB_CHARACTERS = "*?["
READ_BYTES = 64 << 10
"""Bytes per read from a remote file whose own cache reads ahead."""


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path has a scheme."""
    return "://" in str(path)


def join(root: str | os.PathLike, path: str) -> str:
    """Join a path to a root, unless it is absolute or has a scheme."""
    if is_remote(path) or path.startswith("/"):
        return path
    return as_folder(root) + path if is_remote(root) else os.path.join(root, path)


def host_of(address: str) -> str:
    """Return the start of an address, up to its host or bucket."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def as_folder(address: str | os.PathLike) -> str:
    """Return an address with a slash at its end."""
    return str(address) if str(address).endswith("/") else f"{address}/"


def open_file(path: str, piece: int | None = None) -> BinaryIO:
    """Open a file for reading bytes, with seek. Raises OSError, and DataError if fsspec lacks a package.

    piece: bytes per request to a remote store, for random access; 0 for one request per read; if None, the store's own
    read-ahead is used, for sequential access.
    """
    if not is_remote(path):
        return open(path, "rb")
    system, inner = _system(path)
    options = {} if piece is None else {"cache_type": "none"}
    with _as_os_errors(path):
        file = _RemoteFile(path, system.open(inner, "rb", **options))
        return cast(BinaryIO, file) if piece == 0 else io.BufferedReader(file, piece or READ_BYTES)


def read_range(path: str, start: int, size: int) -> bytes:
    """Read `size` bytes of a file, fewer at its end: in one request if the store's library reads ranges by itself.

    Raises OSError, and DataError if fsspec lacks a package.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)
    system, inner = _system(path)
    # The other libraries open a file for it, and would read ahead.
    options = {} if system.async_impl else {"cache_type": "none"}
    with _as_os_errors(path):
        return system.cat_file(inner, start, start + size, **options)


def size(path: str) -> int:
    """Return the size of a file, bytes. Raises OSError."""
    return int(_ask(path, os.path.getsize, "size"))


def exists(path: str) -> bool:
    """Return whether there is a file or folder."""
    return bool(_ask(path, os.path.exists, "exists"))


def is_folder(path: str) -> bool:
    """Return whether there is a folder."""
    return bool(_ask(path, os.path.isdir, "isdir"))


def _ask(path: str, local: Callable[[str], Any], method: str) -> Any:
    """Ask the local file system, or that of a path with a scheme by its method of this name."""
    if not is_remote(path):
        return local(path)
    system, inner = _system(path)
    return getattr(system, method)(inner)


def files_below(folder: str) -> list[str]:
    """List the files in a folder and its subfolders, relative to it, sorted, with forward slashes; no hidden ones."""
    if not is_remote(folder):
        found = [
            os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder) for name in names
        ]
        files = [path.replace(os.sep, "/") for path in found if os.path.isfile(os.path.join(folder, path))]
    else:
        system, inner = _system(folder)
        files = [_relative(path, inner) for path in system.find(inner)]
    return sorted(path for path in files if not is_hidden(path))


def matches(root: str, pattern: str) -> list[str]:
    """List what a pattern with *, ? and [ ] matches in `root`, sorted, relative to it if the pattern is.

    What is hidden below the folder that the pattern begins with is left out.
    """
    whole = join(root, pattern)
    if not is_remote(whole):
        found = glob.glob(pattern, root_dir=root or None, recursive=True)
        return sorted(path for path in found if not is_hidden(path[len(_fixed_folder(pattern)) :]))
    folder = _fixed_folder(whole)
    system, inner = _system(folder)
    below = [_relative(path, inner) for path in system.glob(as_folder(inner) + whole[len(folder) :])]
    found = [folder + path for path in below if not is_hidden(path)]
    return sorted(found if is_remote(pattern) else [path.removeprefix(as_folder(root)) for path in found])


def _fixed_folder(pattern: str) -> str:
    """Return the start of a pattern up to the last slash before its first *, ? or [ ]."""
    first = min(pattern.index(character) for character in GLOB_CHARACTERS if character in pattern)
    return pattern[: pattern.rfind("/", 0, first) + 1]


def state(path: str) -> list[Any]:
    """Return [files, bytes, time or hash], which changes if a file changes, or any file in a folder.

    A file is compared by size and time, a folder by the names, sizes and times of all its files. Remote files are
    compared by what the store reports of each: its time or its version.
    """
    if is_remote(path):
        system, inner = _system(path)
        files = [join(inner, name) for name in files_below(path)] if system.isdir(inner) else [inner]
        facts = [(_relative(file, inner), int(system.size(file)), system.ukey(file)) for file in files]
    elif os.path.isdir(path):
        stats = [(name, os.stat(os.path.join(path, name))) for name in files_below(path)]
        facts = [(name, status.st_size, status.st_mtime_ns) for name, status in stats]
    else:
        status = os.stat(path)
        return [1, status.st_size, status.st_mtime_ns]
    digest = hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return [len(facts), sum(size for _, size, _ in facts), digest]


def version(path: str) -> str:
    """Return a hash of what the store of a remote file reports of it, by one request. Raises OSError."""
    system, inner = _system(path)
    with _as_os_errors(path):
        facts = sorted((str(name), str(value)) for name, value in system.info(inner).items())
    return hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


class _RemoteFile(io.RawIOBase):
    """A file of a remote store whose errors are converted to OSErrors."""

    def __init__(self, path: str, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with _as_os_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_errors(self._path):
            return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Convert errors of the libraries of remote stores, and time-outs without an errno, to OSErrors."""
    try:
        yield
    except Exception as error:
        is_plain = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        if is_plain or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise OSError(errno.EIO, f"{shorten(path)}: {type(error).__name__}: {shorten(error)}") from error


def _relative(path: str, folder: str) -> str:
    """Return a path that fsspec listed relative to the listed folder; some stores omit the leading slash."""
    return path.strip("/")[len(folder.strip("/")) :].lstrip("/")


def _system(path: str) -> tuple[AbstractFileSystem, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        # The message of fsspec names the package for the scheme.
        raise DataError(
            f"{shorten(path)} cannot be opened: {shorten(error)}; fix: install that package, or give a local path"
        ) from error
