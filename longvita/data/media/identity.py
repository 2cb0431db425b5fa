"""The identity of a state of a media file, without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longvita.data.media.media_file import FilePart, InlineMedia, MediaFile, name_of
from longvita.data.storage import remote


@dataclass(frozen=True)
class FileIdentity:
    """The current state of a file; a rewritten file has another identity."""

    path: str
    """Absolute path with the bounds of a part; an address with its store's metadata; or the hash of inline bytes."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Modification time, nanoseconds; 0 if the file is not local."""

    @classmethod
    def of(cls, source: MediaFile) -> FileIdentity:
        """The identity of a media file in its current state. Raises OSError."""
        if isinstance(source, InlineMedia):
            return cls(str(name_of(source)), len(source.content), 0)
        path, bounds = (source.path, str(name_of(source))) if isinstance(source, FilePart) else (str(source), "")
        if remote.is_remote(path):
            return cls(f"{path}{bounds} {remote.state(path)}", 0, 0)
        status = os.stat(path)
        return cls(os.path.abspath(path) + bounds, status.st_size, status.st_mtime_ns)
