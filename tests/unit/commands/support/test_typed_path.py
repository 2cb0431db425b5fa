"""Paths as people type or paste them."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvita.commands.support.typed_path import typed_path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.png", "a.png"),
        (" a b.png ", "a b.png"),
        ("~/a.png", "HOME/a.png"),
        ("'~/a b.png'", "HOME/a b.png"),
        (r"a\ b\'\(1\).png", "a b'(1).png"),
        ("'it'\\''s.png'", "it's.png"),
        ("it's.png", "it's.png"),
        ("file:///a/b%20c%C3%A9.png", "/a/b cé.png"),
        ("FILE://localhost/a.png", "/a.png"),
        ("'file:///a b.png'", "/a b.png"),
        ("file://other/a.png", "file://other/a.png"),
        ("https://a/b.png", "https://a/b.png"),
        ("two words 'and.png", "two words 'and.png"),
        ("", ""),
    ],
)
def test_a_path_is_read_as_a_shell_reads_it(home: Path, text: str, path: str) -> None:
    assert typed_path(text) == path.replace("HOME", str(home))


@pytest.mark.parametrize("name", ["'a.png'", r"a\ b.png", "~", "file:a.png"])
def test_a_name_that_has_these_characters_itself_comes_first(home: Path, name: str) -> None:
    (home / name).touch()
    (home / "a.png").touch()
    assert typed_path(name) == name
