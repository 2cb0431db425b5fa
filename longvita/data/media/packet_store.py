"""Packet tables on disk, one small file a film, shared by processes, stages and runs.

A table is stored by the path, size and time of its film, so that a rank need not read a film from end to end to decode
some of its frames. A file takes less than 2 bytes a frame. The store may lose entries at any time; an entry that is
missing or damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.data.media.media_file import FileIdentity
from longvita.data.media.packets import PacketTable

MAGIC = b"LVPACKET1\n"
"""Start of an entry, changed with its format and with the rules by which frames are numbered."""
FIELDS = ("time_base", "restarts", "has_stamps", "promised", "last_decoded")
"""Fields of a table that are kept as JSON."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PacketStore:
    """The packet tables of all films."""

    folder: Path

    def load(self, identity: FileIdentity) -> PacketTable | None:
        """Read the table of a film; None if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zlib.error):
            return unpack_table(self._entry(identity).read_bytes())
        return None

    def save(self, identity: FileIdentity, table: PacketTable) -> None:
        """Write the table of a film; a disk that is full costs a warning."""
        entry = self._entry(identity)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            descriptor, draft = tempfile.mkstemp(dir=entry.parent, suffix=".part")
            with open(descriptor, "wb") as file:
                file.write(pack_table(table))
            os.replace(draft, entry)
        except OSError as error:
            logger.warning("the packet table of %s cannot be stored in %s: %s", identity.path, self.folder, error)

    def _entry(self, identity: FileIdentity) -> Path:
        key = "\0".join((identity.path, str(identity.size), str(identity.mtime_ns)))
        name = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return self.folder / name[:2] / name


def pack_table(table: PacketTable) -> bytes:
    """The content of an entry."""
    about = json.dumps({name: getattr(table, name) for name in FIELDS} | {"first": int(table.stamps[0])})
    steps = np.diff(table.stamps)
    width = next(size for size in (1, 2, 4, 8) if not len(steps) or np.abs(steps).max() < 1 << (8 * size - 1))
    # The bytes of one weight lie together, which zlib shortens better.
    planes = steps.astype(f"<i{width}").view(np.uint8).reshape(-1, width).T.tobytes()
    body = zlib.compress(table.bits.tobytes() + planes, 9)
    return MAGIC + f"{zlib.crc32(body)} {len(table.bits)} {width} {about}\n".encode() + body


def unpack_table(content: bytes) -> PacketTable:
    """The table that `pack_table` packed. Raises ValueError for other content, or zlib.error."""
    header, _, body = content.removeprefix(MAGIC).partition(b"\n")
    checksum, count, width, about = header.split(b" ", 3)
    if not content.startswith(MAGIC) or int(checksum) != zlib.crc32(body):
        raise ValueError("no packet table, or a damaged one")
    values = np.frombuffer(zlib.decompress(body), np.uint8)
    planes = np.ascontiguousarray(values[int(count) :].reshape(int(width), -1).T)
    steps = planes.view(f"<i{int(width)}").ravel().astype(np.int64)
    facts = json.loads(about)
    stamps = np.cumsum(np.concatenate([[facts.pop("first")], steps]), dtype=np.int64)
    return PacketTable(stamps, values[: int(count)], **facts | {"restarts": tuple(facts["restarts"])})
