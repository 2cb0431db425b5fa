"""A cache of decoded frames on disk, shared by processes and limited in bytes.

Each frame is one file: the pixels of its tile. The cache may lose entries at any time. An entry that is damaged or
cannot be read is decoded again. A disk error while writing is logged, and the run continues without that entry.
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

from longvita.data.media.media_file import FileIdentity

HEADER = struct.Struct("<8sI")
"""Header of an entry: MAGIC and the CRC-32 of the pixels that follow."""
MAGIC = b"LVFRAME2"
"""Changed with the format of an entry, the numbers of frames or the conversion of a frame to its tile."""
COUNT_FILE = "bytes"
"""File with the number of bytes in use, changed only under its lock."""
SUBFOLDER, ENTRY = re.compile("[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}|tmp\w+\.part")
"""Names of subfolders and of the files in them; no other file is counted or removed."""
LOW_WATER = 0.9
"""Fraction of the limit that an eviction leaves in use, so that not every new entry causes one."""
LOCK_TRIES = 20
"""Attempts to get the lock before a frame is not cached."""
LOCK_WAIT = 0.01
"""Time between two attempts, seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameCache:
    """The cached frames of one video file."""

    folder: Path
    """Folder of the frames of all files."""
    max_bytes: int
    """Limit of the bytes of that folder's files."""
    identity: FileIdentity
    image_size: int
    """S, side of a tile, pixels."""

    def load(self, frames: Sequence[int], out: np.ndarray) -> list[int]:
        """Read frames into the rows of `out`, uint8 [k, S, S, 3]; returns the rows that are not in the cache."""
        return [row for row, frame in enumerate(frames) if not _read(self._entry(frame), out[row])]

    def store(self, frame: int, tile: np.ndarray) -> None:
        """Write the tile of a frame, uint8 [S, S, 3], if there is space for it."""
        entry, pixels = self._entry(frame), np.ascontiguousarray(tile).data
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            if self._reserve(HEADER.size + tile.nbytes):
                _write_atomically(entry, HEADER.pack(MAGIC, zlib.crc32(pixels)), pixels)
        except BlockingIOError:
            return  # Other processes hold the lock: one frame does not matter.
        except OSError as error:
            _warn_once(self.folder, str(error.strerror))

    def _entry(self, frame: int) -> Path:
        key = "\0".join(map(str, (self.identity, self.image_size, frame)))
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / name

    def _reserve(self, size: int) -> bool:
        """Count `size` bytes as used, after eviction of the least recently used entries if they do not fit."""
        with self._locked() as file:
            file.seek(0)
            try:
                used = int(file.read())
            except ValueError:  # Damaged, which includes invalid UTF-8.
                used = self.max_bytes
            if used + size > self.max_bytes:
                used = self._evict(size)
            if used + size > self.max_bytes:
                return False
            file.seek(0)
            file.truncate()
            file.write(str(used + size))
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[TextIO]:
        """Lock and open the file with the bytes in use. Raises BlockingIOError if other processes hold the lock."""
        with open(self.folder / COUNT_FILE, "a+") as file:
            for _ in range(LOCK_TRIES - 1):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(LOCK_WAIT)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file

    def _evict(self, size: int) -> int:
        """Recount the entries and, if `size` more bytes do not fit, delete the oldest; returns the bytes in use."""
        entries = sorted(self._entries())
        used = sum(entry_size for _, entry_size, _ in entries)
        if used + size <= self.max_bytes:
            return used
        for _, entry_size, path in entries:
            if used + size <= self.max_bytes * LOW_WATER:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                used -= entry_size
        return used

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, bytes and path of each entry, with the unfinished files of running and killed processes."""
        with os.scandir(self.folder) as entries:
            folders = [entry.path for entry in entries if SUBFOLDER.fullmatch(entry.name) and entry.is_dir()]
        for folder in folders:
            with os.scandir(folder) as files:
                for file in files:
                    if not ENTRY.fullmatch(file.name):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat()
                        yield status.st_mtime_ns, status.st_size, file.path


def _read(entry: Path, out: np.ndarray) -> bool:
    """Read a tile, uint8 [S, S, 3], into `out`; False if there is no such entry, or a damaged one, which is removed."""
    try:
        content = entry.read_bytes()
    except OSError:
        return False
    header = HEADER.pack(MAGIC, zlib.crc32(memoryview(content)[HEADER.size :]))
    if len(content) != HEADER.size + out.nbytes or not content.startswith(header):
        with contextlib.suppress(OSError):
            entry.unlink()
        return False
    out[...] = np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(out.shape)
    now = time.time_ns()
    with contextlib.suppress(OSError):  # Another user may own the folder.
        os.utime(entry, ns=(now, now))
    return True


def _write_atomically(entry: Path, *parts: bytes | memoryview) -> None:
    descriptor, name = tempfile.mkstemp(dir=entry.parent, suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            file.writelines(parts)
        os.replace(name, entry)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@functools.cache
def _warn_once(folder: Path, error: str) -> None:
    logger.warning(
        "decoded frames cannot be written to data.frame_cache %s: %s; the run continues without it", folder, error
    )
