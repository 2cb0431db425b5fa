"""An object store that counts its requests: counted:///PATH is the local file of that path."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class CountingStore(AbstractFileSystem):
    """Local files for reading. A look-up of a file and a range of its bytes are one request each, as in S3."""

    protocol = "counted"
    # As the libraries of object stores, it reads a range without a look-up before.
    async_impl = True
    cachable = False
    ranges: ClassVar[list[tuple[int, int]]] = []
    """First byte and length of each range that was requested."""
    lookups: ClassVar[list[str]] = []
    """Path of each file that was looked up."""

    @classmethod
    def address(cls, path: str | os.PathLike) -> str:
        """Make the store known in this process, set the counts to 0 and return the address of a local file."""
        fsspec.register_implementation(cls.protocol, cls, clobber=True)
        cls.reset()
        return f"{cls.protocol}://{os.path.abspath(path)}"

    @classmethod
    def reset(cls) -> None:
        """Set the counts to 0."""
        cls.ranges.clear()
        cls.lookups.clear()

    @classmethod
    def requests(cls) -> int:
        """Return the number of requests."""
        return len(cls.ranges) + len(cls.lookups)

    @classmethod
    def bytes_read(cls) -> int:
        """Return the bytes of all ranges."""
        return sum(size for _, size in cls.ranges)

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Look up a file or folder."""
        path = self._strip_protocol(path)
        self.lookups.append(path)
        return _description(path)

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        """List a folder, or a file itself."""
        path = self._strip_protocol(path)
        folder = os.path.isdir(path)
        paths = sorted(os.path.join(path, name) for name in os.listdir(path)) if folder else [path]
        return [_description(one) if detail else one for one in paths]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        """Read a range."""
        with open(self._strip_protocol(path), "rb") as file:
            file.seek(start or 0)
            content = file.read(-1 if end is None else end - (start or 0))
        self.ranges.append((start or 0, len(content)))
        return content

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{cls.protocol}://")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return _CountedFile(self, path, mode, **options)


class _CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


def _description(path: str) -> dict[str, Any]:
    status, kind = os.stat(path), "directory" if os.path.isdir(path) else "file"
    return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime_ns}
