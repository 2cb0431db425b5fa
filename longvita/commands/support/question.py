"""The question of `longvita generate`: text or a file, with a mark for each picture and video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from longvita.commands.support.typed_path import typed_path
from longvita.data.errors import SampleError
from longvita.data.formats.text import decode
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, mark_media
from longvita.inference.errors import PromptError


def read_question(question: str) -> str:
    """The question itself, or the text of the .txt file of that name. Raises PromptError.

    A name without spaces that ends in .txt is a mistyped one where there is no such file; other text is a question.
    """
    path = typed_path(question)
    if path.lower().endswith(".txt"):
        if os.path.isfile(path):
            question = _file_text(path)
        elif len(question.split()) == 1:
            raise PromptError(f"the question's file {path} does not exist; fix: give a file, or the question itself")
    question = plain_text(question)
    if not question.strip():
        raise PromptError("the question is empty")
    return question


def _file_text(path: str) -> str:
    try:
        return decode(Path(path).read_bytes(), "it").strip()
    except (OSError, SampleError) as error:
        raise PromptError(f"the question's file {path} cannot be read: {error}") from error


def media_paths(typed: Sequence[str] | None, noun: str) -> list[str]:
    """The paths of typed ones. Raises PromptError where there is no such file or folder."""
    paths = [typed_path(text) for text in typed or ()]
    for path in paths:
        if not os.path.exists(path):
            raise PromptError(f"{noun} {path} does not exist")
    return paths


def plain_text(text: str) -> str:
    """The text without a byte order mark at its beginning. Raises PromptError for bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start + 1} of the question is a byte that is no text in this terminal's encoding; "
            "fix: type it again, as UTF-8"
        ) from error
    return text.removeprefix("\ufeff")


def with_marks(question: str, images: int, videos: int) -> str:
    """The question with a mark for each picture and video before it, unless it has marks of its own."""
    if (IMAGE_MARK in question and images) or (VIDEO_MARK in question and videos):
        return question
    return mark_media(question, images, videos)
