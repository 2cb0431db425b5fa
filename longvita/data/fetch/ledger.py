"""What was fetched into a folder, in a file of it, so that a second run need not read whole files again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longvita.data.errors import DataError
from longvita.data.fetch.hub import HubFile

FOLDER = ".fetch"
"""Below the folder that is filled: the ledger, the lock, and files that are under way."""

logger = logging.getLogger(__name__)


class Ledger:
    """Files of a folder that were checked against the Hub: size, time of change and digest of each."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / FOLDER / "ledger.json"
        self._entries: dict[str, dict[str, Any]] = _read(self._path)
        self._guard = threading.Lock()

    def knows(self, target: str, digest: str | None = None) -> bool:
        """Whether a file is as it was when it was checked (and had this digest)."""
        entry = self._entries.get(target)
        if entry is None or (digest is not None and entry["digest"] != digest):
            return False
        return (entry["size"], entry["mtime_ns"]) == _stamp(self._folder / target)

    def note(self, target: str, file: HubFile) -> None:
        """Remembers that a file was checked."""
        size, mtime_ns = _stamp(self._folder / target)
        entry = {"repository": file.repository, "revision": file.revision, "path": file.path}
        with self._guard:
            self._entries[target] = {**entry, "digest": file.digest, "size": size, "mtime_ns": mtime_ns}
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self._entries, indent=1))
            os.replace(fresh, self._path)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        logger.warning("%s can't be read; files that are there are checked again", path)
        return {}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other fetches out of a folder. Raises DataError if one is at work."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another `longvita data fetch` is filling {folder}; wait for it, or end it") from error
        except OSError as error:
            logger.warning("%s has no locks (%s): see that no other fetch fills it", folder, error)
        yield
