"""A sample: a conversation with its pictures and videos."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from longvita.data.errors import Reason, SampleError
from longvita.data.media.media_file import MediaRef, name_of
from longvita.errors import MAX_WORD, shorten

CHAT_ROLES = ("system", "user", "assistant")
"""Roles of ChatML."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "observation": "user",
    "tool": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
}
"""Role words of published data in lower case, and their ChatML roles: calls of tools are learned, their results not."""
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
"""Marks in a turn's text at the places of its pictures and videos."""


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    """system, user or assistant."""
    text: str
    """Text with the marks of its pictures and videos."""
    has_loss: bool = True
    """Whether the text is learned; only that of an assistant turn is."""


@dataclass(frozen=True)
class Sample:
    """A conversation and its media."""

    turns: tuple[Turn, ...]
    images: tuple[MediaRef, ...] = ()
    """Pictures, in the order of their marks."""
    videos: tuple[MediaRef, ...] = ()
    """Video files or folders of frames, in the order of their marks."""
    unused: tuple[str, ...] = field(default=(), compare=False)
    """Names of values of its record that are not used."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that stand for its media; a mark without media is text, as in the published loader."""
        return marks_of(len(self.images), len(self.videos))


def marks_of(num_images: int, num_videos: int) -> tuple[str, ...]:
    """Return the marks that stand for media."""
    return tuple(mark for mark, count in ((IMAGE_MARK, num_images), (VIDEO_MARK, num_videos)) if count)


def parse_turns(messages: Sequence[Any]) -> tuple[Turn, ...]:
    """Parse the messages of a prompt, {"role", "content"} each. Raises SampleError: invalid_sample or empty_turn."""
    return tuple(_parse_turn(number, message) for number, message in enumerate(messages))


def _parse_turn(number: int, message: Any) -> Turn:
    if isinstance(message, Turn):
        return message
    if not isinstance(message, dict):
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} is {type(message).__name__}, not an object")
    role, text = message.get("role"), message.get("content")
    if text is None or (isinstance(text, str) and not text.strip()):
        raise SampleError(Reason.EMPTY_TURN, f"turn {number} ({shorten(ascii(role), MAX_WORD)}) has no text")
    return Turn(chat_role(role, number), checked_text(text, number))


def chat_role(role: Any, number: int, more: Sequence[tuple[str, str]] = ()) -> str:
    """Return the ChatML role of a role word. Raises SampleError(invalid_sample).

    more: pairs of another role word and its ChatML role.
    """
    if isinstance(role, str):
        found = next((own for word, own in more if word == role), None) or ROLES.get(role.strip().lower())
        if found:
            return found
    known = ", ".join((*ROLES, *(word for word, _ in more)))
    raise SampleError(
        Reason.INVALID_SAMPLE,
        f"turn {number} has the role {shorten(ascii(role), MAX_WORD)}; known are {known}; fix: name its ChatML role in "
        "the source's roles",
    )


def checked_text(text: Any, number: int) -> str:
    """Return the text of a turn. Raises SampleError(invalid_sample) if it is none, or cannot be encoded."""
    if not isinstance(text, str):
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} has content of type {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} holds half a surrogate pair: {error.reason}") from None
    return text


def is_path(text: str) -> bool:
    """Return whether a text may be a path: not empty, no zero byte, no half of a surrogate pair."""
    try:
        return b"\0" not in text.encode() and text != ""
    except UnicodeEncodeError:
        return False


def check_marks(turns: Sequence[Turn], num_images: int, num_videos: int) -> None:
    """Raise SampleError(mark_count) unless the text has one mark for each picture and for each video.

    Without pictures (or videos) their marks are text.
    """
    for mark, given, noun in ((IMAGE_MARK, num_images, "pictures"), (VIDEO_MARK, num_videos, "videos")):
        marks = sum(turn.text.count(mark) for turn in turns)
        if given and marks != given:
            raise SampleError(
                Reason.MARK_COUNT,
                f"the text has {marks} {mark} marks for {given} {noun}; fix: write one where each of the {noun} "
                "belongs",
            )


def hash_media_names(sample: Sample) -> int:
    """Return a hash, below 2**64, of the names of a sample's pictures and videos; 0 if it has none."""
    if not sample.images and not sample.videos:
        return 0
    names = json.dumps([[name_of(file) for file in media] for media in (sample.images, sample.videos)])
    return int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "little")


def mark_media(text: str, num_images: int, num_videos: int) -> str:
    """Put a mark for each picture and video before a question that has none."""
    marks = [IMAGE_MARK] * num_images + [VIDEO_MARK] * num_videos
    return "".join(f"{mark}\n" for mark in marks) + text
