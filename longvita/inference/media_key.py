"""Keys that identify the content of pictures and videos, reading the files only where needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from longvita.data.media.item import PictureSource
from longvita.data.media.media_file import EmbeddedMedia, FilePart, read_bytes


class MediaKey:
    """The content of one picture or video; equal keys have equal bytes, whatever their files are called.

    One file in an unchanged state, and files of different sizes, are compared by name, time and size alone. Only files
    of equal size are read (SHA-256), each once. A file that changed after its key was made equals no other, because its
    earlier content is gone.
    """

    def __init__(self, source: PictureSource):
        self._path = Path(os.path.realpath(source)) if isinstance(source, (str, os.PathLike)) else None
        self._state, self.size = self._look()
        self._digest: str | None = None
        if isinstance(source, FilePart | EmbeddedMedia):
            self._digest = hashlib.sha256(read_bytes(source)).hexdigest()
        elif not isinstance(source, (str, os.PathLike)):
            self._digest = hashlib.sha256(f"{source.mode} {source.size}".encode() + source.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MediaKey):
            return NotImplemented
        if self is other or (self._path is not None and (self._path, self._state) == (other._path, other._state)):
            return True
        if self.size != other.size:
            return False
        digest = self._content()
        return digest is not None and digest == other._content()

    def __hash__(self) -> int:
        return hash(self.size)

    def _look(self) -> tuple[str, int]:
        """Return a digest of name, modification time and size of the file (each file of a folder), and the total bytes.

        A digest keeps comparison cheap: keys are compared once for each frame of a video, and a folder of frames has as
        many files.
        """
        seen = [(path.name, status.st_mtime_ns, status.st_size) for path, status in self._files()]
        return hashlib.sha256(repr(seen).encode()).hexdigest(), sum(size for _, _, size in seen)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        if self._path is None:
            return
        paths = sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]
        for path in paths:
            yield path, path.stat()

    def _content(self) -> str | None:
        """Return the digest of the bytes; None when the file has changed since."""
        if self._digest is None and self._path is not None:
            try:
                digest = hashlib.sha256()
                for path, status in self._files():
                    digest.update(f"{path.suffix} {status.st_size}\n".encode())
                    with path.open("rb") as file:
                        hashlib.file_digest(file, lambda: digest)
                self._digest = digest.hexdigest() if self._look()[0] == self._state else None
            except OSError:
                return None
        return self._digest
