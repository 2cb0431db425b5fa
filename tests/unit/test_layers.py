"""Imports go from higher layers to lower ones, and folders do not import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LAYERS = (
    ("errors",),
    ("files", "pages", "process_limits", "processes", "megatron_patches"),
    ("config",),
    ("parallel",),
    ("data",),
    ("attention",),
    ("platforms",),
    ("model",),
    ("checkpoint",),
    ("training", "inference"),
    ("evaluation", "planning", "verify"),
    ("convert", "doctor"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Folders and modules of longvita/, and megatron_patches/, lowest layer first."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@dataclass(frozen=True)
class Import:
    """One import of ours."""

    file: str
    line: int
    importer: str
    """Folder or module of LAYERS that the file belongs to."""
    imported: str
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.imported}"


def unit_of(parts: tuple[str, ...]) -> str:
    """The entry of LAYERS that a module path belongs to: ("longvita", "data", "media") is "data"."""
    if parts[0] != "longvita":
        return parts[0]
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of longvita and megatron_patches in a file, those inside functions included."""
    file = path.relative_to(root).as_posix()
    importer = unit_of(path.relative_to(root).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = path.relative_to(root).with_suffix("").parts[: -node.level]
                module = ".".join((*above, *filter(None, [module])))
            names = [f"{module}.{alias.name}" if module == "longvita" else module for alias in node.names]
        for name in sorted(set(names)):
            parts = tuple(name.split("."))
            if parts[0] in ("longvita", "megatron_patches") and unit_of(parts) not in ("", importer):
                yield Import(file, node.lineno, importer, unit_of(parts), id(node) in typing_only)


def all_imports(root: Path) -> list[Import]:
    """The imports between units of LAYERS in a checkout."""
    files = [path for top in ("longvita", "megatron_patches") for path in sorted((root / top).rglob("*.py"))]
    return [
        found
        for path in files
        if unit_of(path.relative_to(root).parts[:2]) != "__init__.py"
        for found in imports_of(path, root)
    ]


def upward(imports: list[Import]) -> list[str]:
    """Imports that do not go to a lower layer; units without a row are for the test of the rows."""
    known = [one for one in imports if not one.typing_only and {one.importer, one.imported} <= set(LEVEL)]
    return [str(one) for one in known if LEVEL[one.imported] >= LEVEL[one.importer]]


def circles(imports: list[Import]) -> list[str]:
    """Pairs of units that import each other, directly or through others, imports for types included."""
    reached = {name: {one.imported for one in imports if one.importer == name} for name in LEVEL}
    for middle in LEVEL:
        for name in LEVEL:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return [f"{a} <-> {b}" for a in LEVEL for b in LEVEL if a < b and b in reached[a] and a in reached[b]]


def test_every_folder_has_its_row():
    units = {path.stem for path in (REPOSITORY / "longvita").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert units - {"__init__", "__pycache__"} | {"megatron_patches"} == set(LEVEL)


def test_imports_go_to_lower_layers():
    assert upward(all_imports(REPOSITORY)) == []


def test_folders_do_not_import_each_other_in_a_circle():
    assert circles(all_imports(REPOSITORY)) == []


@pytest.mark.parametrize(
    ("importer", "text", "expected"),
    [
        ("data/a.py", "def f():\n    from longvita.training.b import c\n", "data imports training"),
        ("data/a.py", "from longvita import training\n", "data imports training"),
        ("training/a.py", "import longvita.inference.b\n", "training imports inference"),
        ("config/a.py", "from ..data import b\n", "config imports data"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, importer: str, text: str, expected: str):
    path = tmp_path / "longvita" / importer
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (message,) = upward(list(imports_of(path, tmp_path)))
    assert expected in message


def test_imports_for_types_may_go_upward_but_not_in_a_circle(tmp_path: Path):
    for name, other in (("data", "model"), ("model", "data")):
        path = tmp_path / "longvita" / name / "a.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from longvita.{other}.a import b\n")
    imports = all_imports(tmp_path)
    assert upward(imports) == []
    assert circles(imports) == ["data <-> model"]
