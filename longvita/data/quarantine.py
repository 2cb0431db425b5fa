"""The quarantine file: each sample that is not trained on, with the reason."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from longvita.data.errors import Reason, SampleError
from longvita.files import ends_with_partial_line, write_atomically

FILE_NAME = "quarantine.jsonl"
"""Name of the file below a run's output folder."""


class _JSONLine:
    """A dataclass of texts, a line number and a reason that is kept as one line of JSON."""

    def to_json(self) -> str:
        """Return the entry as a line of its file."""
        return json.dumps(dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Parse what `to_json` returned. Raises ValueError for anything else."""
        value = json.loads(line)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        kinds = {field.name: int if field.name == "line" else str for field in fields}
        if not isinstance(value, dict) or {name: type(one) for name, one in value.items()} != kinds:
            raise ValueError(f"not an entry of {', '.join(kinds)}")
        return cls(**{**value, "reason": Reason(value["reason"])})


@dataclass(frozen=True)
class QuarantinedLine(_JSONLine):
    """A line of a data file whose sample cannot be used, under whatever source and path the file is read."""

    line: int
    """Line of the sample in the file, from 1."""
    reason: Reason
    """Reason word."""
    detail: str
    """What is wrong, in a sentence."""

    def of(self, source: str, path: str) -> QuarantinedSample:
        """Return the entry of the quarantine file for a source's data file."""
        return QuarantinedSample(source, path, self.line, self.reason, self.detail)


@dataclass(frozen=True)
class QuarantinedSample(_JSONLine):
    """A sample that is not trained on."""

    source: str
    """Name of the data source."""
    path: str
    """Data file."""
    line: int
    """Line of the sample in the file, from 1."""
    reason: Reason
    """Reason word."""
    detail: str
    """What is wrong, in a sentence."""

    @classmethod
    def because(cls, error: SampleError, source: str, path: str, line: int) -> QuarantinedSample:
        """Make the entry of a sample that raised `error`."""
        return cls(source, path, line, error.reason, error.detail)

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity of the sample."""
        return (self.source, self.path, self.line)


class QuarantineFile:
    """Appends entries to a quarantine file, except those it already has: a resumed run finds them again.

    Each entry is one small write in append mode, so several processes of a machine may write to the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._known = {entry.key for entry in read_quarantine(self.path)}

    def add(self, entries: Iterable[QuarantinedSample]) -> int:
        """Append the entries that are new and return their number."""
        new = []
        for entry in entries:
            if entry.key not in self._known:
                self._known.add(entry.key)
                new.append(entry)
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                if ends_with_partial_line(self.path):
                    file.write(b"\n")
                for entry in new:
                    file.write(f"{entry.to_json()}\n".encode())
        return len(new)


def read_quarantine(path: str | Path) -> list[QuarantinedSample]:
    """Read the entries of a quarantine file, each once; none if there is no file. Other lines are ignored."""
    return read_lines(path)[0] if Path(path).exists() else []


def read_lines(path: str | Path) -> tuple[list[QuarantinedSample], list[bytes]]:
    """Read the entries of a quarantine file, each once, and its other lines: a crash may have cut one.

    Raises OSError.
    """
    entries: dict[tuple, QuarantinedSample] = {}
    others = []
    for line in filter(bytes.strip, Path(path).read_bytes().split(b"\n")):
        try:
            entry = QuarantinedSample.from_json(line)
        except ValueError:
            others.append(line)
        else:
            entries.setdefault(entry.key, entry)
    return list(entries.values()), others


def write_quarantine(path: str | Path, entries: Iterable[QuarantinedSample], others: Iterable[bytes] = ()) -> None:
    """Replace a quarantine file atomically. Entries that a run appends meanwhile would be lost.

    others: lines to keep that are not entries.
    """
    lines = [*others, *(entry.to_json().encode() for entry in entries)]
    write_atomically(Path(path).resolve(), b"".join(line + b"\n" for line in lines))


def count_reasons(entries: Iterable[QuarantinedLine | QuarantinedSample]) -> dict[str, int]:
    """Count entries by reason word, the most frequent first."""
    return dict(Counter(str(entry.reason) for entry in entries).most_common())


def reasons_text(reasons: dict[str, int]) -> str:
    """Format counts by reason word."""
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none"
