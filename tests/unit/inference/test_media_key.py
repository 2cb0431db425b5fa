"""Keys of pictures and videos: equal for equal content, read only where sizes are equal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from longvita.inference.media_key import MediaKey


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one two three")
    return path


def test_a_copy_is_the_same_and_other_content_of_its_size_is_not(file: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.mp4", tmp_path / "other.mp4"
    copy.write_bytes(file.read_bytes())
    other.write_bytes(b"one two THREE")
    assert MediaKey(file) == MediaKey(copy) and hash(MediaKey(file)) == hash(MediaKey(copy))
    assert MediaKey(file) != MediaKey(other)


def test_files_of_different_size_are_not_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(b"one two three four")
    keys = MediaKey(file), MediaKey(file), MediaKey(longer)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file was read"))
    assert keys[0] == keys[1] and keys[0] != keys[2]


def test_a_file_that_changed_after_it_was_seen_equals_nothing(file: Path, tmp_path: Path) -> None:
    seen, copy = MediaKey(file), tmp_path / "copy.mp4"
    file.write_bytes(b"eins zwo drei")
    os.utime(file, ns=(1, 1))
    copy.write_bytes(file.read_bytes())
    assert seen != MediaKey(copy) and seen != MediaKey(file)
    file.unlink()
    assert seen != MediaKey(copy)


def test_folders_of_frames_and_pictures_in_memory(tmp_path: Path) -> None:
    for folder in ("film", "copy", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"first")
        (tmp_path / folder / "2.jpg").write_bytes(b"second" if folder != "other" else b"secund")
    assert MediaKey(tmp_path / "film") == MediaKey(tmp_path / "copy")
    assert MediaKey(tmp_path / "film") != MediaKey(tmp_path / "other")
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert MediaKey(red) == MediaKey(red.copy()) and MediaKey(red) != MediaKey(blue)
