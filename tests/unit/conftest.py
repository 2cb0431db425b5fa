"""A folder of real media and a tiny tokenizer, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longvita.data.chat_template import ChatTemplate
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


@pytest.fixture(scope="session")
def tokenizer(stock: Path) -> LongVITATokenizer:
    return load_tokenizer(stock / "tokenizer")


@pytest.fixture(scope="session")
def template(tokenizer: LongVITATokenizer) -> ChatTemplate:
    """One token a tile."""
    return ChatTemplate(tokenizer, tokens_per_tile=1)
