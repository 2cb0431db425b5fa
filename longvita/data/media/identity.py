"""What tells one state of a media file from another without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longvita.data.media.source import FilePart, InlineMedia, MediaFile, name_of
from longvita.data.storage import remote


@dataclass(frozen=True)
class FileIdentity:
    """A file as it is now; one that is written anew has another identity."""

    path: str
    """Absolute path, with the bounds of a part; an address with what its store says of it; the hash of bytes."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Time of the last change, nanoseconds; 0 where there is no file of this machine."""

    @classmethod
    def of(cls, source: MediaFile) -> FileIdentity:
        """The identity of a source as it is now. Raises OSError."""
        if isinstance(source, InlineMedia):
            return cls(str(name_of(source)), len(source.content), 0)
        path, bounds = (source.path, str(name_of(source))) if isinstance(source, FilePart) else (str(source), "")
        if remote.is_remote(path):
            return cls(f"{path}{bounds} {remote.state(path)}", 0, 0)
        status = os.stat(path)
        return cls(os.path.abspath(path) + bounds, status.st_size, status.st_mtime_ns)
