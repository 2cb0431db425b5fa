"""The error of a config that cannot be used: what is wrong, where it is written, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvita.errors import UserError, shorten

MAX_VALUE_LENGTH = 70


class _Absent:
    """The value of a field that was not given."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class ValueOrigin:
    """Where a value was written: a file and line, an override on the command line, or the schema's default."""

    kind: str = "default"
    """"file", "override" or "default"."""
    file: Path | None = None
    """The file, for kind "file"."""
    line: int = 0
    """Line in the file, from 1."""

    def __str__(self) -> str:
        if self.file is None:
            return self.kind
        return f"{short_path(self.file)}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config."""

    message: str
    """What is wrong, a sentence without the field's name."""
    field: str = ""
    """Dotted name of the field; "" if there is none."""
    value: Any = ABSENT
    """The value; ABSENT if none was given."""
    origin: ValueOrigin = ValueOrigin()
    """Where the value was written."""
    fix: str = ""
    """How to fix it."""
    related: tuple[tuple[str, Any, ValueOrigin], ...] = ()
    """(dotted name, value, origin) of other fields that contribute to the problem."""

    def __str__(self) -> str:
        head = self.field if self.value is ABSENT else f"{self.field} = {show_value(self.value)}"
        lines = [": ".join(part for part in (str(self.origin), head, self.message) if part)]
        lines += [f"    {name} = {show_value(value)} ({origin})" for name, value, origin in self.related]
        if self.fix:
            lines.append(f"    fix: {self.fix}")
        return "\n".join(lines)


class ConfigError(UserError, ValueError):
    """A config that cannot be used; its text lists every problem found, with file, line, value and fix."""

    def __init__(self, problems: str | list[Problem]):
        """Make the error of several problems, or of one that is given as a sentence."""
        self.problems = [Problem(problems, origin=ValueOrigin(""))] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def show_value(value: Any) -> str:
    """Format a value as in YAML, on one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = value if isinstance(value, str) and value else repr(value)
    text = " ".join(text.split())
    return shorten(text, MAX_VALUE_LENGTH)


def short_path(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it, else unchanged."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
