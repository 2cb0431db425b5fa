"""The words and names of the project: one word for a thing, and none that people of this field do not search for."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.conftest import REPOSITORY

FOLDERS = ("longvita", "megatron_patches", "tools", "scripts", "docs", "configs")
SUFFIXES = (".py", ".md", ".sh", ".sbatch", ".yaml", ".svg", ".html")
# In names, words are joined by underscores.
FORBIDDEN = re.compile(
    r"(?<![a-z])(?:anew|goes[ _]on|sets?[ _]aside|told|lets[ _]go[ _]of|put[ _]away|way[ _]out|mend(?:s|ed|ing)?"
    r"|stood[ _]in|rehears\w*|tally|tallies|patien\w*)(?![a-z])",
    re.IGNORECASE,
)


def files() -> list[str]:
    """Files of FOLDERS with text for people, and the pages at the top."""
    found = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts
    ]
    return sorted([*found, *(path.name for path in REPOSITORY.glob("*.md"))])


def group_of(name: str) -> str:
    """The folder below longvita/, else the top folder."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "longvita" else parts[0]


GROUPS = sorted({group_of(name) for name in files()})


@pytest.mark.parametrize(
    "text", ["made anew", "set aside", "set_aside", "told", "a way out", "mended", "rehearsal", "patiently"]
)
def test_the_search_finds_words(text: str):
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("text", ["amendment", "recommend", "renewal", "total", "untold", "impatient", "install"])
def test_the_search_leaves_other_words_alone(text: str):
    assert not FORBIDDEN.search(text)


@pytest.mark.parametrize("group", GROUPS)
def test_forbidden_words(group: str):
    found = []
    for name in files():
        if group_of(name) == group:
            if FORBIDDEN.search(name):
                found.append(name)
            lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
            found += [
                f"{name}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if FORBIDDEN.search(line)
            ]
    assert found == [], "\n".join(found)


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for folder in ("longvita", "megatron_patches", "tools"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(path.relative_to(REPOSITORY).as_posix())
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
