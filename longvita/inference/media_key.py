"""What tells the content of a picture or video from every other, without reading it unless it must be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from longvita.data.media.item import PictureSource
from longvita.data.media.source import FilePart, InlineMedia, read_bytes

_READ_BYTES = 1 << 20


class MediaKey:
    """Content of one picture or video; equal keys have the same bytes, whatever their files are called.

    Files of one name and state, or of different sizes, are told apart by their headers alone. Only two files of the
    same size are read (SHA-256), and each once. A file that has changed since it was first seen equals no other, for
    nobody can tell any more what it held.
    """

    def __init__(self, source: PictureSource):
        self._path = Path(os.path.realpath(source)) if isinstance(source, (str, os.PathLike)) else None
        self._state, self.size = self._look()
        self._digest: str | None = None
        if isinstance(source, FilePart | InlineMedia):
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
        """Digest of name, time of change and size of the file, or of each of a folder of frames; bytes in all.

        A digest, since keys are compared once for each of a video's frames, which may be as many as the files.
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
        """Digest of the bytes; None when they are not those that were seen."""
        if self._digest is None and self._path is not None:
            try:
                digest = hashlib.sha256()
                for path, status in self._files():
                    digest.update(f"{path.suffix} {status.st_size}\n".encode())
                    with path.open("rb") as file:
                        while part := file.read(_READ_BYTES):
                            digest.update(part)
                self._digest = digest.hexdigest() if self._look()[0] == self._state else None
            except OSError:
                return None
        return self._digest
