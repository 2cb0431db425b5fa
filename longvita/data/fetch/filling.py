"""Brings files into a folder: a whole one stays, a part goes on, and one that fails its check goes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longvita.data.errors import DataError
from longvita.data.fetch.hub import TROUBLES, Hub, HubFile, State
from longvita.data.fetch.ledger import FOLDER, Ledger
from longvita.data.fetch.wanted import Wanted


class StopFetching(Exception):
    """Raised in the threads that download when the run is to end; what came stays."""


@dataclass(frozen=True)
class Outcome:
    """What became of a wanted file."""

    wanted: Wanted
    state: State
    size: int = 0
    """Bytes on the Hub."""
    detail: str = ""
    """What is wrong, for a person."""


class _ByteCount:
    """Bytes of one file that came, passed on as they come; the thread ends here when the run is to end."""

    def __init__(self, on_bytes: Callable[[int], None], stop: threading.Event):
        self._on_bytes, self._stop, self._seen = on_bytes, stop, 0

    def add(self, number: int) -> None:
        """Takes bytes that came; below 0 if some went. Raises StopFetching."""
        if self._stop.is_set():
            raise StopFetching
        self._seen += number
        self._on_bytes(number)

    def settle(self, number: int) -> None:
        """Makes it `number` bytes in all: those of a whole file, or 0 where it did not come."""
        self._on_bytes(number - self._seen)
        self._seen = number


class Filler:
    """Fills one folder from a hub."""

    def __init__(self, hub: Hub, folder: Path):
        self._hub = hub
        self._folder = folder
        self._ledger = Ledger(folder)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends all downloads at their next bytes."""
        self._stop.set()

    def look(self, wanted: Wanted, file: HubFile, remember: bool) -> Outcome:
        """Whether a file is there, must be fetched (WANTED), or has another one in its place (FAILED).

        remember: whether a file that is found whole is noted in the ledger. Raises DataError for a place outside the
        folder.
        """
        place = self._place(wanted)
        if not place.exists():
            return Outcome(wanted, State.WANTED, file.size)
        if self._ledger.knows(wanted.target, file.digest):
            return Outcome(wanted, State.THERE, file.size)
        if self._ledger.knows(wanted.target):
            return Outcome(wanted, State.WANTED, file.size)  # we fetched it, and the Hub has another version now
        problem = file.problem(place) if place.is_file() else "it is a folder"
        if problem:
            detail = f"{place} is there already and is not the Hub's file: {problem}; move it away to fetch it"
            return Outcome(wanted, State.FAILED, file.size, detail)
        if remember:
            self._ledger.note(wanted.target, file)
        return Outcome(wanted, State.THERE, file.size)

    def lacking(self, wanted: Wanted, file: HubFile) -> int:
        """Bytes that are still to come."""
        part = self._part(wanted, file)
        return file.size - (min(part.stat().st_size, file.size) if part.exists() else 0)

    def fetch(self, wanted: Wanted, file: HubFile, on_bytes: Callable[[int], None]) -> Outcome:
        """Downloads a file, checks it and puts it in its place.

        on_bytes: is told how many bytes came; below 0 if some went. Raises StopFetching after stop().
        """
        count = _ByteCount(on_bytes, self._stop)
        part = self._part(wanted, file)
        try:
            problem = self._bring(part, wanted, file, count)
        except TROUBLES as error:
            count.settle(0)
            state, detail = self._hub.explain(error, file.repository)
            return Outcome(wanted, state, file.size, detail)
        if problem is not None:
            count.settle(0)
            detail = f"what came is damaged and was removed: {problem}; run the command again"
            return Outcome(wanted, State.FAILED, file.size, detail)
        count.settle(file.size)
        return Outcome(wanted, State.FETCHED, file.size)

    def _bring(self, part: Path, wanted: Wanted, file: HubFile, count: _ByteCount) -> str | None:
        """Completes a part and puts it in its place; if it is not what the Hub describes, removes it and says why."""
        count.add(0)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._hub.download(file, part, count.add)
        problem = file.problem(part)
        if problem is not None:
            part.unlink()
            return problem
        self._put(part, wanted, file)
        return None

    def _put(self, part: Path, wanted: Wanted, file: HubFile) -> None:
        place = self._place(wanted)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, place)
        self._ledger.note(wanted.target, file)
        for left in part.parent.glob(f"{_key(wanted)}-*"):  # of earlier versions of the file
            with contextlib.suppress(FileNotFoundError):
                left.unlink()

    def _place(self, wanted: Wanted) -> Path:
        place = self._folder / wanted.target
        if not place.resolve().is_relative_to(self._folder.resolve()):
            raise DataError(f"{place} leads out of {self._folder} by a link; nothing outside that folder is written")
        return place

    def _part(self, wanted: Wanted, file: HubFile) -> Path:
        return self._folder / FOLDER / "parts" / f"{_key(wanted)}-{file.digest[:16]}"


def _key(wanted: Wanted) -> str:
    return hashlib.blake2b(wanted.target.encode(), digest_size=8).hexdigest()
