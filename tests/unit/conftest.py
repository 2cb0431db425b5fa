"""A folder of real media and a tiny tokenizer, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import fsspec
import pytest

from longvita.data.chat_template import ChatTemplate
from longvita.data.media.pictures import picture_file
from longvita.data.media.video import list_frames
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from tests.unit.data.material import write_media, write_tokenizer


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer/ and media/, not to be written to."""
    folder = tmp_path_factory.mktemp("stock")
    write_tokenizer(folder / "tokenizer")
    write_media(folder / "media")
    return folder


@pytest.fixture
def folder(stock: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with links to tokenizer/ and media/."""
    (tmp_path / "tokenizer").symlink_to(stock / "tokenizer")
    (tmp_path / "media").symlink_to(stock / "media")
    return tmp_path


@pytest.fixture
def own_media(folder: Path, stock: Path) -> Callable[[], Path]:
    """Replaces the link to media/ by a copy that may be changed."""

    def copy() -> Path:
        (folder / "media").unlink()
        shutil.copytree(stock / "media", folder / "media")
        return folder / "media"

    return copy


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The media files that are opened during a test."""
    files, open_picture, open_film = [], picture_file.opened, av.open

    def count(opener: Callable) -> Callable:
        return lambda file, *rest, **options: files.append(file) or opener(file, *rest, **options)

    monkeypatch.setattr(picture_file, "opened", count(open_picture))
    monkeypatch.setattr(av, "open", count(open_film))
    monkeypatch.setattr("longvita.data.media.video.list_frames", lambda path: files.append(path) or list_frames(path))
    return files


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(scope="session")
def tokenizer(stock: Path) -> LongVITATokenizer:
    return load_tokenizer(stock / "tokenizer")


@pytest.fixture(scope="session")
def template(tokenizer: LongVITATokenizer) -> ChatTemplate:
    """One token a tile."""
    return ChatTemplate(tokenizer, tokens_per_tile=1)
