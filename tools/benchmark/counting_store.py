"""A store of files in memory that counts requests as an object store gets them."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class CountingStore(AbstractFileSystem):
    """Files at counted://NAME. A look-up of a file and a range of its bytes are one request each, as in S3."""

    protocol = "counted"
    # As the libraries of object stores, it reads a range without a look-up before.
    async_impl = True
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    """Content by name."""
    ranges: ClassVar[list[tuple[int, int]]] = []
    """First byte and length of each range that was requested."""
    lookups: ClassVar[list[str]] = []
    """Name of each file that was looked up."""

    @classmethod
    def put(cls, name: str, content: bytes) -> str:
        """Store a file, set the counts to 0 and return its address."""
        fsspec.register_implementation(cls.protocol, cls, clobber=True)
        cls.files[name] = content
        cls.reset()
        return f"{cls.protocol}://{name}"

    @classmethod
    def reset(cls) -> None:
        """Set the counts to 0."""
        cls.ranges.clear()
        cls.lookups.clear()

    @classmethod
    def requests(cls) -> int:
        """Return the number of requests."""
        return len(cls.ranges) + len(cls.lookups)

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Look up a file."""
        name = self._strip_protocol(path)
        self.lookups.append(name)
        if name not in self.files:
            raise FileNotFoundError(path)
        return {"name": name, "size": len(self.files[name]), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        """Read a range."""
        content = self.files[self._strip_protocol(path)][start:end]
        self.ranges.append((start or 0, len(content)))
        return content

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return _CountedFile(self, path, mode, **options)


class _CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)
