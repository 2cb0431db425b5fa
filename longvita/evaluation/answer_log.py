"""The answers of a run as JSONL, so that a run which was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longvita.errors import UserError
from longvita.evaluation.task import Record
from longvita.files import write_atomically

RUN_FILE = "run.json"
SCORES = "scores.json"
"""What a finished run leaves."""
_PATTERN = "answers.*.jsonl"


class OutputError(UserError, ValueError):
    """An output folder that holds something else, or cannot be written."""


def claim(folder: Path, identity: Mapping[str, Any], write: bool = True) -> None:
    """Makes the folder this run's; with `write` false, another process does, and it is looked at alone.

    Raises OutputError when it holds answers that were asked for otherwise, or cannot be used.
    """
    path = folder / RUN_FILE
    try:
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_atomically(path, json.dumps(identity, indent=1, sort_keys=True) + "\n")
        if not path.exists():
            return
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the output folder {folder} cannot be used: {error}; choose another with --output"
        ) from error
    wanted = json.loads(json.dumps(identity))
    if held == wanted:
        return
    names = [name for name in sorted({*held, *wanted}) if held.get(name) != wanted.get(name)]
    differences = ", ".join(f"{name} {held.get(name)!r} there and {wanted.get(name)!r} here" for name in names)
    raise OutputError(f"{folder} holds the answers of another run ({differences}); choose another folder with --output")


def read_answers(folder: Path) -> dict[str, Record]:
    """All answers in the folder by key, the last one of each; half a line, left by a kill, is passed over.

    Raises OutputError for a file that was damaged otherwise.
    """
    records: dict[str, Record] = {}
    for path in sorted(folder.glob(_PATTERN)):
        try:
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} is damaged ({error}); mend the line or remove the file") from error
        for record in lines:
            # A replica that could not read a video may stand before one that could.
            if "error" not in record or record["key"] not in records:
                records[record["key"]] = record
    return records


class AnswerWriter:
    """Appends the answers of one replica; each is on disk before the next is asked for.

    Raises OutputError where that is not possible.
    """

    def __init__(self, folder: Path, replica: int):
        self._path = folder / f"answers.{replica}.jsonl"
        with self._told():
            self._file = self._path.open("ab+")
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)

    def add(self, record: Record) -> None:
        """Writes one line."""
        with self._told():
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error}; the same command goes on from there"
            ) from error
