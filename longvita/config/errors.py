"""The error of a wrong configuration: what is wrong, where it is written, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvita.errors import UserError

LONGEST_VALUE = 70


class _Absent:
    """The value of a field that was not given."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class ValueOrigin:
    """Where a value was written: a file and line, an override on the command line, or the schema's default.

    Attributes:
        kind: "file", "override" or "default".
        file: the file, for kind "file".
        line: line in the file, from 1.
    """

    kind: str = "default"
    file: Path | None = None
    line: int = 0

    def __str__(self) -> str:
        if self.file is None:
            return self.kind
        return f"{short_path(self.file)}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        message: what is wrong, a sentence without the field's name.
        field: dotted name of the field, "" where there is none.
        value: what was given; ABSENT where nothing was.
        origin: where it was given.
        fix: what to do about it.
        related: (dotted name, value, origin) of the other fields that play a part.
    """

    message: str
    field: str = ""
    value: Any = ABSENT
    origin: ValueOrigin = ValueOrigin()
    fix: str = ""
    related: tuple[tuple[str, Any, ValueOrigin], ...] = ()

    def __str__(self) -> str:
        head = self.field if self.value is ABSENT else f"{self.field} = {show_value(self.value)}"
        lines = [": ".join(part for part in (str(self.origin), head, self.message) if part)]
        lines += [f"    {name} = {show_value(value)} ({origin})" for name, value, origin in self.related]
        if self.fix:
            lines.append(f"    Fix: {self.fix}")
        return "\n".join(lines)


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; its text lists every problem found, with file, line, value and way out.

    Args:
        problems: the problems, or one sentence.
    """

    def __init__(self, problems: str | list[Problem]):
        self.problems = [Problem(problems, origin=ValueOrigin(""))] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def show_value(value: Any) -> str:
    """A value as YAML would write it, in one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = value if isinstance(value, str) and value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 4] + " ..."


def short_path(path: Path) -> str:
    """A path relative to the current folder where it lies below it, else as it is."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
