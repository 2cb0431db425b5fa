"""The names that a config may use, read from the schema, and suggestions for unknown names."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longvita.config.schema import Config


def section_of(annotation: object) -> type[BaseModel] | None:
    """Return the section class in a field's annotation: the annotation itself, or the value type of a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) is dict:
        return section_of(typing.get_args(annotation)[1])
    return None


def is_mapping(annotation: object) -> bool:
    """Return whether a field holds entries named by the user (data.dataset)."""
    return typing.get_origin(annotation) is dict


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield all (dotted name, field) pairs of a section; names chosen by the user are written NAME."""
    for name, info in section.model_fields.items():
        dotted = f"{prefix}{name}"
        inner = section_of(info.annotation)
        yield dotted, info
        if inner is not None:
            yield from fields(inner, f"{dotted}.NAME." if is_mapping(info.annotation) else f"{dotted}.")


def section_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Return the section class at `path`, or None if there is no section."""
    section: type[BaseModel] | None = Config
    entry_next = False
    for step in path:
        if entry_next:  # A name chosen by the user: the section stays.
            entry_next = False
            continue
        info = section.model_fields.get(str(step)) if section is not None else None
        if info is None:
            return None
        section = section_of(info.annotation)
        entry_next = is_mapping(info.annotation)
    return None if entry_next else section


def suggest(path: tuple[str | int, ...]) -> str:
    """Return a fix for an unknown name: the nearest name in its section or in another one, else all in its section."""
    section = section_at(path[:-1])
    name = str(path[-1])
    prefix = ".".join(str(step) for step in path[:-1])
    if section is None:
        return ""
    close = difflib.get_close_matches(name, list(section.model_fields), n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix + '.' if prefix else ''}{close[0]}?"
    everywhere = [dotted for dotted, _ in fields()]
    elsewhere = [dotted for dotted in everywhere if dotted.split(".")[-1] == name]
    if not elsewhere:
        last = difflib.get_close_matches(name, [dotted.split(".")[-1] for dotted in everywhere], n=1, cutoff=0.75)
        elsewhere = [dotted for dotted in everywhere if last and dotted.split(".")[-1] == last[0]]
    known = f"known in {prefix or 'a file'}: {', '.join(section.model_fields)}"
    return f"did you mean {' or '.join(elsewhere[:2])}? ({known})" if elsewhere else known


def type_name(annotation: object) -> str:
    """Return a field's type in words: int, float, text, true or false, list of text, one of a, b."""
    plain = {int: "int", float: "float", str: "text", bool: "true or false", type(None): "null"}
    if annotation in plain:
        return plain[annotation]  # type: ignore[index]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    return "section"


def field_at(path: tuple[str | int, ...]) -> FieldInfo | None:
    """Return the schema's field at `path`, or None; list positions at the end of `path` are ignored."""
    steps = list(path)
    while steps and isinstance(steps[-1], int):
        steps.pop()
    section = section_at(tuple(steps[:-1]))
    return section.model_fields.get(str(steps[-1])) if section is not None and steps else None
