"""Commands, files and links that the pages name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from longvita import cli
from tests.conftest import REPOSITORY
from tests.readme import TEST_COMMAND, readme_commands

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]


def command_names() -> set[str]:
    """Return the full names of the commands: "train", "config show"."""

    def walk(command, prefix: str):
        children = getattr(command, "commands", {})
        if not children:
            yield prefix.strip()
        for name, child in children.items():
            yield from walk(child, f"{prefix} {name}")

    return set(walk(typer.main.get_command(cli.app), ""))


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_it_opens_with_the_two_commands():
    assert readme_commands()[:2] == ["bash scripts/quickstart.sh", TEST_COMMAND]


@pytest.mark.parametrize("command", readme_commands())
def test_files_and_commands_of_the_readme_exist(command):
    words = shlex.split(command)
    if words[0] == "longvita":
        assert {" ".join(words[1:2]), " ".join(words[1:3])} & command_names()
    for word in words:
        if word.endswith((".sh", ".py", ".yaml")) and not word.startswith("runs/"):
            assert (REPOSITORY / word).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_pages(page):
    known = command_names()
    for words in re.findall(r"longvita ((?:[a-z]+ ?){1,2})", (REPOSITORY / page).read_text(encoding="utf-8")):
        first, both = words.split()[0], words.strip()
        if first in {name.split()[0] for name in known}:
            assert first in known or both in known, words


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)", text):
        if "://" not in link:
            name, _, heading = link.partition("#")
            target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
            if not target.exists() or (heading and heading not in headings(target)):
                missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    names = re.findall(r"`((?:longvita|megatron_patches|configs|scripts|tests|tools|docs)/[\w./]+\.\w+)`", text)
    missing = [name for name in names if not (REPOSITORY / name).exists() and "my_" not in name and "NAME" not in name]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_python_names_in_the_text(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:longvita|megatron_patches)(?:\.\w+)+)`", text):
        steps = name.split(".")
        module = (REPOSITORY / "/".join(steps)).with_suffix(".py")
        owner = (REPOSITORY / "/".join(steps[:-1])).with_suffix(".py")
        defined = owner.is_file() and re.search(rf"^(def|class) {steps[-1]}\b", owner.read_text(), flags=re.MULTILINE)
        assert module.is_file() or defined, name
