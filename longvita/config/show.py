"""A config as lines of YAML, each value with a comment that names its origin; `load` accepts the lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from longvita.config import names
from longvita.config.loader import Loaded, dump
from longvita.config.nodes import FieldPath

MAX_LIST_LENGTH = 80


@dataclass(frozen=True)
class Line:
    """One line of the listing: YAML text, then a comment (an origin, or a description on a line of its own)."""

    text: str
    comment: str = ""


def lines(loaded: Loaded, docs: bool = False) -> Iterator[Line]:
    """Yield the lines of the listing."""
    yield from _section(dump(loaded.config), (), loaded, docs)


def _section(section: dict[str, Any], path: FieldPath, loaded: Loaded, docs: bool) -> Iterator[Line]:
    indent = "  " * len(path)
    for name, value in section.items():
        here = (*path, name)
        if docs:
            yield from _doc(here, indent)
        source = str(loaded.origin(here))
        key = f"{indent}{_scalar(name)}:"
        if isinstance(value, dict) and value:
            yield Line(key)
            yield from _section(value, here, loaded, docs)
        elif isinstance(value, list) and len(str(value)) > MAX_LIST_LENGTH:
            yield Line(key, source)
            yield from (Line(f"{indent}  - {_scalar(item)}") for item in value)
        else:
            yield Line(f"{key} {_scalar(value)}", source)


def _doc(path: FieldPath, indent: str) -> Iterator[Line]:
    info = names.field_at(path)
    if info is not None and info.description:
        kind = names.type_name(info.annotation)
        words = " ".join(info.description.split())
        yield Line(indent, words if kind == "section" else f"{words} ({kind})")


def _scalar(value: Any) -> str:
    """Format a value in YAML's flow style, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
