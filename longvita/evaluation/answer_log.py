"""The answers of a run as JSONL files, from which a killed run resumes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longvita.errors import UserError
from longvita.evaluation.task import AnswerRecord, EvaluationItem
from longvita.files import write_atomically

RUN_FILE = "run.json"
SCORES = "scores.json"
"""Written when a run is finished."""
_PATTERN = "answers.*.jsonl"


class OutputError(UserError, ValueError):
    """An output folder that holds another run's answers, or cannot be written."""


def claim(folder: Path, identity: Mapping[str, Any], write: bool = True) -> None:
    """Record in the folder whose answers it holds, or compare with the record of an earlier run.

    write: whether this process creates folder and record; the others only read. Raises OutputError when the folder
    holds answers of a run with other settings, or cannot be used.
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


def read_answers(folder: Path, items: Sequence[EvaluationItem]) -> dict[str, AnswerRecord]:
    """Read the answers to `items` by key, the last one of each; those to items with another digest are skipped.

    An incomplete last line, left by a kill, is skipped as well. Raises OutputError for any other damage.
    """
    digests = {item.key: item.digest for item in items}
    records: dict[str, AnswerRecord] = {}
    for path in sorted(folder.glob(_PATTERN)):
        try:
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            current = [record for record in lines if digests.get(record["key"]) == record["digest"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is damaged ({error}); fix the line or remove the file") from error
        for record in current:
            # The file of a replica that failed to read a video may come after that of one that answered.
            if "error" not in record or record["key"] not in records:
                records[record["key"]] = record
    return records


class AnswerWriter:
    """Append the answers of one replica; each is on disk before the next one is generated.

    Raises OutputError where the file cannot be written.
    """

    def __init__(self, folder: Path, replica: int):
        self._path = folder / f"answers.{replica}.jsonl"
        with self._as_output_error():
            self._file = self._path.open("ab+")
            self._file.seek(0)
            complete = self._file.read().rfind(b"\n") + 1
            self._file.truncate(complete)

    def add(self, record: AnswerRecord) -> None:
        """Write one line."""
        with self._as_output_error():
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error}; the same command resumes from there"
            ) from error
