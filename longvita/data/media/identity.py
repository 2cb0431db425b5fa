"""What tells one state of a media file from another without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FileIdentity:
    """A file as it is now; one that is written anew has another identity."""

    path: str
    """Absolute path."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, nanoseconds."""

    @classmethod
    def of(cls, path: str | os.PathLike) -> FileIdentity:
        """The identity of the file at `path`. Raises OSError."""
        status = os.stat(path)
        return cls(os.path.abspath(path), status.st_size, status.st_mtime_ns)
