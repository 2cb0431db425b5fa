"""YAML files as trees of values, each with its file and line.

PyYAML alone keeps no lines and follows YAML 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longvita.config.errors import ConfigError, Problem, ValueOrigin

FieldPath = tuple[str | int, ...]
"""Names of sections and of a field, and list positions."""


@dataclass
class Node:
    """A value and where it was written."""

    value: Any
    """A scalar, a dict of name to Node, or a list of Nodes."""
    origin: ValueOrigin
    """Where it was written."""

    def plain(self) -> Any:
        """Return the value without origins: plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def find(self, path: Iterable[str | int]) -> Node | None:
        """Return the node at `path` (names and list positions), or None if nothing is written there."""
        node = self
        for step in path:
            value = node.value
            if isinstance(value, list):
                value = dict(enumerate(value))
            if not isinstance(value, dict) or step not in value:
                return None
            node = value[step]
        return node

    def origin_of(self, path: Iterable[str | int]) -> ValueOrigin:
        """Return the origin of the value at `path`, else of the innermost written section around it."""
        steps = tuple(path)
        for length in range(len(steps), 0, -1):
            node = self.find(steps[:length])
            if node is not None:
                return node.origin
        return ValueOrigin()


def merge(base: Node, over: Node) -> Node:
    """Override `base` by `over`: sections are merged name by name; lists and single values replace those of `base`."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for name, child in over.value.items():
        merged[name] = merge(merged[name], child) if name in merged else child
    return Node(merged, over.origin)


# libyaml's parser if PyYAML was built with it: ten times faster on a mix of many files.
_Base: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):
    """YAML's safe loader with the plain scalars of YAML 1.2.

    PyYAML follows YAML 1.1, where 1e-5 is a string, `on` a boolean, 010 eight and 1:30 ninety.
    """

    yaml_implicit_resolvers: dict = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_DIGITS = list("-+0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), _DIGITS)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$"),
    [*_DIGITS, "."],
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", ""), 10))


def read_file(path: Path) -> Node:
    """Read one YAML file, without its includes.

    Raises:
        ConfigError: the file is missing or not text, the YAML is invalid, or a name occurs twice in one section.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = Problem(f"cannot be read: {error.strerror}", origin=ValueOrigin("file", path, 0))
        raise ConfigError([problem]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("is not a text file in UTF-8", origin=ValueOrigin("file", path, 0))]) from error
    return parse(text, path)


def parse(text: str, file: Path | None = None, kind: str = "file") -> Node:
    """Parse YAML text; `file` and `kind` become the origins. Raises ConfigError as read_file does."""
    reader = _Reader(_Loader(text), file, kind)
    try:
        root = reader.loader.get_single_node()
        if root is None:
            return Node({}, ValueOrigin(kind, file, 1))
        return reader.convert(root, reader.origin(root), ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        message = f"is not valid YAML: {getattr(error, 'problem', None) or error}"
        raise ConfigError([Problem(message, origin=ValueOrigin(kind, file, line))]) from error
    finally:
        reader.loader.dispose()


class _Reader:
    """Converts PyYAML's nodes to Nodes."""

    def __init__(self, loader: _Loader, file: Path | None, kind: str):
        self.loader = loader
        self.file = file
        self.kind = kind

    def origin(self, node: yaml.Node) -> ValueOrigin:
        return ValueOrigin(self.kind, self.file, node.start_mark.line + 1)

    def convert(self, node: yaml.Node, origin: ValueOrigin, above: tuple[yaml.Node, ...]) -> Node:
        if any(node is other for other in above):
            raise ConfigError([Problem("an alias contains itself", origin=origin)])
        if isinstance(node, yaml.MappingNode):
            return Node(self._convert_mapping(node, (*above, node)), origin)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(child, self.origin(child), (*above, node)) for child in node.value], origin)
        return Node(self.loader.construct_object(node), origin)

    def _convert_mapping(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[str, Node]:
        self._refuse_duplicates(node)
        self.loader.flatten_mapping(node)
        result: dict[str, Node] = {}
        for key, child in node.value:
            name = self.loader.construct_object(key)
            if not isinstance(name, str):
                problem = Problem("a name must be text", str(key.value), origin=self.origin(key), fix="quote it")
                raise ConfigError([problem])
            result[name] = self.convert(child, self.origin(key), above)
        return result

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in first and key.value != "<<":
                message = f"occurs twice in one section, first in line {first[key.value]}"
                raise ConfigError([Problem(message, key.value, origin=self.origin(key), fix="keep one of them")])
            first[key.value] = line
