"""Reads YAML files into `Config`: includes, overrides, strict validation, and errors with file, line and fix."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from longvita.config import checks, names
from longvita.config.errors import ABSENT, ConfigError, Problem, ValueOrigin, short_path
from longvita.config.nodes import FieldPath, Node, merge, parse, read_file
from longvita.config.schema import Config
from longvita.errors import shorten

INCLUDE = "include"
OVERRIDE = ValueOrigin("override")
NUMBER = re.compile(r"^[-+]?\d+(\.\d*)?([eE][-+]?\d+)?$")
Check = Callable[[Config], list[Problem]]
"""Finds problems that only a higher layer knows: of the platform, of the data."""


@dataclass(frozen=True)
class Loaded:
    """A validated config and the origins of its values."""

    config: Config
    tree: Node
    """What was written, with origins."""

    def origin(self, dotted: str | FieldPath) -> ValueOrigin:
        """Return where a field's value was written; the default origin if nowhere."""
        node = self.tree.find(split_name(dotted) if isinstance(dotted, str) else dotted)
        return node.origin if node is not None else ValueOrigin()


def load(path: str | Path, overrides: list[str] | None = None, more_checks: Sequence[Check] = ()) -> Config:
    """Read a YAML file with its includes, apply overrides and validate the result.

    Args:
        path: the file.
        overrides: `section.field=value` each; the value is YAML, for instance `[1, 2]`, `null` or `1e-5`.
        more_checks: called with the config; their problems are reported together with those of the schema.

    Raises:
        ConfigError: lists all problems found, each with file, line, value and fix.
    """
    return load_with_origins(path, overrides, more_checks).config


def load_with_origins(
    path: str | Path, overrides: list[str] | None = None, more_checks: Sequence[Check] = ()
) -> Loaded:
    """Load a config as `load` does, and return it with the origins of its values."""
    tree = read_with_includes(Path(path))
    for text in overrides or []:
        tree = merge_override(tree, text)
    loaded = Loaded(validate(tree), tree)
    problems = checks.find_problems(loaded.config)
    for check in more_checks:
        problems += check(loaded.config)
    if problems:
        raise ConfigError([locate(problem, loaded) for problem in problems])
    return loaded


def dump(config: Config) -> dict[str, Any]:
    """Convert a config to plain dicts, lists and scalars, which `Config.model_validate` accepts."""
    return config.model_dump(mode="python")


def to_yaml(config: Config) -> str:
    """Convert a config to YAML text, which `load` accepts."""
    return yaml.safe_dump(dump(config), sort_keys=False, width=120, allow_unicode=True)


def read_with_includes(path: Path, above: tuple[Path, ...] = ()) -> Node:
    """Read a file and its includes; later includes override earlier ones, the file itself overrides all of them.

    Raises:
        ConfigError: a file is missing or invalid, or files include each other in a circle.
    """
    path = path.resolve()
    if not path.is_file():
        raise ConfigError([_missing_file(path)])
    tree = read_file(path)
    if not isinstance(tree.value, dict):
        raise ConfigError([Problem("the file must consist of `name: value` lines", origin=tree.origin)])
    include = tree.value.pop(INCLUDE, None)
    if "dataset" in tree.value and "data" not in tree.value:  # at the top, as mix files of the published form have it
        dataset = tree.value.pop("dataset")
        tree.value["data"] = Node({"dataset": dataset}, dataset.origin)
    result = Node({}, ValueOrigin("file", path, 1))
    for entry in _include_entries(include):
        target = (path.parent / entry.value).resolve()
        if target in (*above, path):
            message = "files include each other: " + " -> ".join(short_path(step) for step in (*above, path, target))
            raise ConfigError([Problem(message, INCLUDE, entry.value, entry.origin)])
        if not target.is_file():
            raise ConfigError([_missing_file(target, entry)])
        result = merge(result, read_with_includes(target, (*above, path)))
    return merge(result, tree)


def merge_override(tree: Node, text: str) -> Node:
    """Apply one `section.field=value` to the tree; a value that is a section replaces the entire section.

    Raises:
        ConfigError: the text is not of this form, or its value is not valid YAML.
    """
    name, equals, value_text = text.partition("=")
    steps = split_name(name.strip())
    if not equals or not steps or any(step == "" for step in steps):
        fix = "write section.field=value, for instance training.train_iterations=5"
        raise ConfigError([Problem("is not an override", origin=OVERRIDE, field=text, fix=fix)])
    value = parse(value_text, kind="override")
    if not value_text.strip():
        value = Node(None, OVERRIDE)
    return _with_value(tree, steps, value)


def split_name(dotted: str) -> FieldPath:
    """Split a dotted name into steps; a step that contains dots is in double quotes: data.dataset."a.b".ratio."""
    steps = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', dotted)]
    rebuilt = re.sub(r'"[^"]*"|[^."]+', "x", dotted)
    return tuple(steps) if re.fullmatch(r"x(\.x)*", rebuilt) else ()


def validate(tree: Node) -> Config:
    """Validate the tree against the schema, field by field.

    Raises:
        ConfigError: lists all unknown names, wrong types and values out of range.
    """
    try:
        return Config.model_validate(tree.plain())
    except ValidationError as error:
        problems = [_schema_problem(dict(detail), tree) for detail in error.errors(include_url=False)]
        problems.sort(key=lambda problem: (str(problem.origin.file or ""), problem.origin.line))
        raise ConfigError(problems) from None


def _with_value(tree: Node, steps: FieldPath, value: Node) -> Node:
    """Return a copy of the tree with `value` at `steps`."""
    if not steps:
        return value
    children = dict(tree.value) if isinstance(tree.value, dict) else {}
    below = children.get(steps[0], Node({}, OVERRIDE))
    children[str(steps[0])] = _with_value(below, steps[1:], value)
    return Node(children, tree.origin)


def _include_entries(include: Node | None) -> list[Node]:
    if include is None:
        return []
    entries = include.value if isinstance(include.value, list) else [include]
    for entry in entries:
        if not isinstance(entry.value, str):
            fix = "include: [../model/long_vita_14b.yaml], paths relative to this file"
            raise ConfigError([Problem("must be a list of files", INCLUDE, include.plain(), include.origin, fix)])
    return entries


def _missing_file(path: Path, entry: Node | None = None) -> Problem:
    siblings = sorted(str(other.name) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.4)
    if close:
        fix = f"did you mean {short_path(path.parent / close[0])}?"
    elif siblings:
        fix = f"{short_path(path.parent)} contains {', '.join(siblings)}"
    else:
        fix = "write includes relative to the file that names them" if entry else ""
    message = f"there is no file {short_path(path)}"
    if entry is None:
        return Problem(message, origin=ValueOrigin(""), fix=fix)
    return Problem(message, INCLUDE, entry.value, entry.origin, fix)


def _schema_problem(detail: dict[str, Any], tree: Node) -> Problem:
    """Convert one of pydantic's errors to a Problem."""
    path: FieldPath = tuple(detail["loc"])
    dotted = ".".join(str(step) for step in path)
    origin = tree.origin_of(path)
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        return Problem("this name is not known", dotted, value, origin, names.suggest(path))
    if detail["type"] == "missing":
        return Problem("must be given", dotted, ABSENT, origin)
    info = names.field_at(path)
    wanted = names.type_name(info.annotation) if info is not None else ""
    if detail["type"] == "literal_error":
        return Problem(f"must be {_allowed(info, detail)}", dotted, value, origin, _nearest_choice(value, info))
    if detail["type"] == "model_type":
        section = names.section_at(path)
        known = f"known in it: {', '.join(section.model_fields)}" if section is not None else ""
        return Problem("must be a section of `name: value` lines", dotted, value, origin, known)
    if detail["type"].endswith("_type"):
        message = f"must be {wanted}, and this is {_type_of(value)}" if wanted else detail["msg"].lower()
        return Problem(message, dotted, value, origin, _type_fix(value, info))
    message = (
        detail["msg"].replace("Input should", "must").replace("List should", "must").replace("must be at", "be at")
    )
    return Problem(message[0].lower() + message[1:], dotted, value, origin)


def _allowed(info: Any, detail: dict[str, Any]) -> str:
    choices = _choices(info)
    return "one of " + ", ".join(choices) if choices else str(detail["ctx"]["expected"])


def _choices(info: Any) -> list[str]:
    """Return the values that a field of fixed choices, or a list of them, accepts."""
    text = names.type_name(info.annotation) if info is not None else ""
    return text.split("one of ", 1)[1].split(", ") if "one of " in text else []


def _nearest_choice(value: Any, info: Any) -> str:
    close = difflib.get_close_matches(str(value), _choices(info), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _type_of(value: Any) -> str:
    words = {bool: "true or false", int: "an int", float: "a float", str: "text", list: "a list", dict: "a section"}
    return words.get(type(value), "null" if value is None else type(value).__name__)


def _type_fix(value: Any, info: Any) -> str:
    wanted = names.type_name(info.annotation) if info is not None else ""
    if isinstance(value, float) and value.is_integer() and "int" in wanted:
        return f"write {int(value)}"
    if isinstance(value, str) and NUMBER.match(value) and ("int" in wanted or "float" in wanted):
        return f"write {value} without quotes"
    if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off") and "true" in wanted:
        return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if wanted.startswith("list") and not isinstance(value, list):
        return f"write it as a list: [{shorten(value)}]"
    if value is None and "null" not in wanted:
        return "give a value, or remove the line for the default"
    return ""


@contextlib.contextmanager
def with_origins(loaded: Loaded) -> Iterator[None]:
    """Add the origins of their fields to the problems of a ConfigError raised inside the context."""
    try:
        yield
    except ConfigError as error:
        raise located(error, loaded) from None


def located(error: ConfigError, loaded: Loaded) -> ConfigError:
    """Return the error with the origins of its fields filled in."""
    return ConfigError([locate(problem, loaded) for problem in error.problems])


def locate(problem: Problem, loaded: Loaded) -> Problem:
    """Return a cross-field problem with the origins of its fields filled in."""
    related = tuple((name, value, loaded.origin(name)) for name, value, _ in problem.related)
    return Problem(problem.message, problem.field, problem.value, loaded.origin(problem.field), problem.fix, related)
