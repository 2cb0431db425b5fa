"""A cache of decoded frames on disk that processes share, with a bound on its bytes.

Each frame is a file of its own: the tile that goes into the model, as it is. The cache may lose anything at any time.
What cannot be read, or is damaged, is decoded again; what cannot be written is left out, and no error of the disk stops
a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from longvita.data.media.identity import FileIdentity
from longvita.data.media.source import MediaFile

HEADER = struct.Struct("<8sI")
"""Head of an entry: MAGIC and the CRC-32 of the pixels behind it."""
MAGIC = b"LVFRAME1"
"""Changes with the form of an entry or the way from a frame to its tile."""
COUNT_FILE = "bytes"
"""File of the folder that tells how many bytes are taken; whoever changes that number holds its lock."""
SHELF, ENTRY = re.compile("[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}|tmp\w+\.part")
"""Names of the folders below the cache's, and of the files in them: nothing else is counted or removed."""
LOW_WATER = 0.9
"""Share of the bound that is left in use once entries had to go, so that not every new one has to make room."""
LOCK_TRIES = 20
"""Tries to get the lock before a frame is left out of the cache."""
LOCK_WAIT = 0.01
"""Time between two tries, seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameCache:
    """The cache in one folder."""

    folder: Path
    max_bytes: int
    """Bound on the bytes of its files."""

    def of_file(self, path: MediaFile, image_size: int) -> FileFrames | None:
        """Its entries of one video file as the file is now; None if there is no such file."""
        try:
            return FileFrames(self, FileIdentity.of(path), image_size)
        except OSError:
            return None

    def read(self, entry: Path, out: np.ndarray) -> bool:
        """Whether `entry` holds a tile of the shape of `out`, uint8 [S, S, 3], which then does too."""
        try:
            content = entry.read_bytes()
        except OSError:
            return False
        if not _is_whole(content, out.nbytes):
            with contextlib.suppress(OSError):
                entry.unlink()
            return False
        out[...] = np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(out.shape)
        with contextlib.suppress(OSError):  # Others may own the folder.
            _mark_used(entry)
        return True

    def write(self, entry: Path, tile: np.ndarray) -> None:
        """Makes a tile, uint8 [S, S, 3], an entry, if there is room for it."""
        pixels = np.ascontiguousarray(tile).data
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            if self._take_room(HEADER.size + tile.nbytes):
                _write_whole(entry, HEADER.pack(MAGIC, zlib.crc32(pixels)), pixels)
        except BlockingIOError:
            return  # Others keep the lock busy: one frame more or less in the cache does not matter.
        except OSError as error:
            _warn_once(self.folder, str(error.strerror))

    def _take_room(self, size: int) -> bool:
        """Counts `size` bytes as taken, removing the entries that were not used for longest if need be."""
        with self._locked() as file:
            taken = _number(file)
            if taken is None or taken + size > self.max_bytes:
                taken = self._evict(size)
            if taken + size > self.max_bytes:
                return False
            file.seek(0)
            file.truncate()
            file.write(str(taken + size))
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[TextIO]:
        """The file that tells how many bytes are taken. Raises BlockingIOError if others keep it."""
        with open(self.folder / COUNT_FILE, "a+") as file:
            for attempt in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == LOCK_TRIES - 1:
                        raise
                    time.sleep(LOCK_WAIT)
            yield file

    def _evict(self, size: int) -> int:
        """Counts the entries anew and, if `size` more bytes do not fit, removes old ones; the bytes that are left."""
        entries = sorted(self._entries())
        taken = sum(entry_size for _, entry_size, _ in entries)
        if taken + size <= self.max_bytes:
            return taken
        for _, entry_size, path in entries:
            if taken + size <= self.max_bytes * LOW_WATER:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                taken -= entry_size
        return taken

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, bytes and path of each entry, those included that a process is writing or left behind."""
        with os.scandir(self.folder) as shelves:
            folders = [shelf.path for shelf in shelves if SHELF.fullmatch(shelf.name) and shelf.is_dir()]
        for folder in folders:
            with os.scandir(folder) as files:
                for file in files:
                    if not ENTRY.fullmatch(file.name):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat()
                        yield status.st_mtime_ns, status.st_size, file.path


@dataclass(frozen=True)
class FileFrames:
    """The entries of one video file."""

    cache: FrameCache
    identity: FileIdentity
    image_size: int
    """S, side of a tile, pixels."""

    def load(self, frames: Sequence[int], out: np.ndarray) -> list[int]:
        """Fills the rows of `out`, uint8 [k, S, S, 3], with the frames of these numbers; the rows that it lacks."""
        return [row for row, frame in enumerate(frames) if not self.cache.read(self._entry(frame), out[row])]

    def store(self, frame: int, tile: np.ndarray) -> None:
        """Keeps the tile of a frame, uint8 [S, S, 3]."""
        self.cache.write(self._entry(frame), tile)

    def _entry(self, frame: int) -> Path:
        key = "\0".join(map(str, (self.identity, self.image_size, frame)))
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self.cache.folder / name[:2] / name


def _is_whole(content: bytes, size: int) -> bool:
    if len(content) != HEADER.size + size:
        return False
    magic, checksum = HEADER.unpack_from(content)
    return magic == MAGIC and checksum == zlib.crc32(memoryview(content)[HEADER.size :])


def _write_whole(entry: Path, *parts: bytes | memoryview) -> None:
    """Writes a file that others see whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=entry.parent, suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(name, entry)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _mark_used(entry: Path) -> None:
    now = time.time_ns()
    os.utime(entry, ns=(now, now))


def _number(file: TextIO) -> int | None:
    try:
        file.seek(0)
        return int(file.read())
    except ValueError:  # Damaged; what is not UTF-8 is one too.
        return None


@functools.cache
def _warn_once(folder: Path, error: str) -> None:
    logger.warning("decoded frames cannot be kept in data.frame_cache %s: %s; the run goes on without", folder, error)
