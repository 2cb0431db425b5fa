"""Names of columns, in which a dot leads into a struct or a list: what is there, and what is there instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from longvita.errors import MAX_WORD, shorten


def top_of(name: str, names: Iterable[str]) -> str:
    """Return the name of the record's value or table's column that a name leads into."""
    return name if name in names else name.split(".")[0]


def value_at(record: Mapping[str, Any], name: str) -> Any:
    """Return the value under a name, None if there is none."""
    if name in record:
        return record[name]
    value: Any = record if "." in name else None
    for step in name.split("."):
        value = _inner(value, step)
    return value


def missing_value(record: Mapping[str, Any], purpose: str, name: str) -> str:
    """Describe why there is no value under a name that the config gives for a purpose, with the fix."""
    steps = [name] if name in record else name.split(".")
    inner: Any = record
    for number, step in enumerate(steps):
        names = list(map(str, inner)) if isinstance(inner, Mapping) else []
        if step not in names and _inner(inner, step) is None:
            has = f"{len(inner)} elements" if isinstance(inner, list) else "a value without names"
            return missing_name(purpose, steps, number, names or [has])
        inner = _inner(inner, step)
    return f"{_named(purpose, name)}, which is empty; fix: name another one, or leave such records out"


def missing_name(purpose: str, steps: list[str], number: int, names: list[str]) -> str:
    """Describe a name whose step of this number is not among the names there, with the fix."""
    where = ".".join(steps[:number])
    close = difflib.get_close_matches(steps[number], names, 1)
    nearest = ".".join([*steps[:number], *close, *steps[number + 1 :]])
    fix = f"columns: {{{purpose}: {shorten(nearest, MAX_WORD)}}}" if close else "name another one"
    has = f"{shorten(where, MAX_WORD)!r} has" if where else "there are"
    return f"{_named(purpose, '.'.join(steps))}, but {has} only {shorten(', '.join(names))}; fix: {fix}"


def _named(purpose: str, name: str) -> str:
    return f"the source's columns name {shorten(name, MAX_WORD)!r} for {purpose}"


def _inner(value: Any, step: str) -> Any:
    if isinstance(value, list) and step.isdecimal():
        return value[int(step)] if int(step) < len(value) else None
    return value.get(step) if isinstance(value, Mapping) else None
