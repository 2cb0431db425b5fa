"""The question of `longvita generate`: text or a file, with a mark for each picture and video."""

from __future__ import annotations

from pathlib import Path

from longvita.data.errors import SampleError
from longvita.data.formats.text import decode
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, mark_media
from longvita.inference.prompt_encoder import PromptError


def read_question(question: str) -> str:
    """The question itself, or the text of the .txt file of that name. Raises PromptError."""
    if question.endswith(".txt") and "\n" not in question:
        try:
            question = decode(Path(question).expanduser().read_bytes(), "it").strip()
        except (OSError, SampleError) as error:
            raise PromptError(f"the question's file {question} cannot be read: {error}") from error
    if not question.strip():
        raise PromptError("the question is empty")
    return question


def with_marks(question: str, images: int, videos: int) -> str:
    """The question with a mark for each picture and video before it, unless it has marks of its own."""
    if (IMAGE_MARK in question and images) or (VIDEO_MARK in question and videos):
        return question
    return mark_media(question, images, videos)
