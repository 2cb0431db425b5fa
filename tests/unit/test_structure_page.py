"""docs/structure.md, the README's module table and the picture name files, functions and folders that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPOSITORY

PAGE = "docs/structure.md"
PICTURE = "docs/images/way_of_a_sample.svg"
LIVES = (
    "The life of a training sample",
    "The life of a question",
    "The life of a config value",
    "The life of a checkpoint",
)
MOST_STEPS = 12
MOST_TERMS = 40
STEP = re.compile(r"^\d+\. .*\n?(?:   .*\n?)*", re.MULTILINE)
MODULES = re.compile(r'font-family="Menlo[^>]*>([^<]+)<')
"""Names below longvita/ in the picture; one that ends with a slash continues in the next text."""
FILE_AND_NAME = re.compile(r"`([\w/]+\.py)`\s+`([\w.]+)`")


def section(title: str, page: str = PAGE) -> str:
    """Return the text below a heading of level two."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return body


def definitions(file: str) -> set[str]:
    """Return the names of a file's functions, classes and methods: "load", "Loader", "Loader.__next__"."""
    found = set()
    for node in ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = (inner.name for inner in node.body if isinstance(inner, ast.FunctionDef))
            found |= {node.name, *(f"{node.name}.{method}" for method in methods)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def rows(title: str, page: str = PAGE) -> list[str]:
    """Return the first cells of the rows of a section's table."""
    return re.findall(r"^\| (.*?) \|", section(title, page), flags=re.MULTILINE)[2:]


@pytest.mark.parametrize("title", LIVES)
def test_steps_are_few_and_numbered(title: str):
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", section(title), flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 0 < len(numbers) <= MOST_STEPS


@pytest.mark.parametrize("title", LIVES)
def test_each_step_names_one_file_and_one_function_that_exist(title: str):
    for step in STEP.findall(section(title)):
        named = FILE_AND_NAME.findall(step)
        assert len(named) == 1, step
        file, name = named[0]
        assert (REPOSITORY / file).is_file(), step
        assert name in definitions(file), step


def test_each_folder_has_one_line():
    folders = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "longvita").rglob("*.py")}
    wanted = [f"`{folder.as_posix()}/`" for folder in folders if folder.as_posix() != "longvita"]
    lines = [cell for cell in rows("Folders") if cell.startswith("`longvita/") and cell.endswith("/`")]
    assert sorted(lines) == sorted(wanted)


def test_the_glossary_is_short():
    terms = rows("Glossary")
    assert 0 < len(terms) <= MOST_TERMS
    assert len(set(terms)) == len(terms)


def test_the_readme_names_every_folder():
    cells = " ".join(rows("Modules", "README.md"))
    named = set(re.findall(r"`([\w/]+(?:\.py)?)`", cells))
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    folders = {
        f"longvita/{path.name}/" for path in (REPOSITORY / "longvita").iterdir() if (path / "__init__.py").exists()
    }
    modules = {f"longvita/{path.name}" for path in (REPOSITORY / "longvita").glob("*.py") if path.name[0] != "_"}
    assert (folders | modules) - named == set()


def test_the_picture_names_modules_that_exist():
    text = "\n".join(MODULES.findall((REPOSITORY / PICTURE).read_text(encoding="utf-8"))).replace("/\n", "/")
    names = [name.strip() for line in text.splitlines() for name in line.split(",") if "longvita " not in line]
    assert len(names) > 5
    missing = [
        name for name in names if not any((REPOSITORY / "longvita" / f"{name}{end}").exists() for end in ("", ".py"))
    ]
    assert missing == []
