"""A sample: a conversation with its pictures and videos, parsed and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longvita.data.errors import Reason, SampleError
from longvita.data.media.media_file import MediaRef, name_of

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Role words of the published files and their ChatML roles."""
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
"""Marks in a turn's text at the places of its pictures and videos."""


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    """system, user or assistant."""
    text: str
    """Text with the marks of its pictures and videos."""


@dataclass(frozen=True)
class Sample:
    """A conversation and its media."""

    turns: tuple[Turn, ...]
    images: tuple[MediaRef, ...] = ()
    """Pictures, in the order of their marks."""
    videos: tuple[MediaRef, ...] = ()
    """Video files or folders of frames, in the order of their marks."""


def parse_line(line: bytes | str) -> Sample:
    """Parse one JSONL line. Raises SampleError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SampleError(Reason.INVALID_JSON, f"not JSON: {error}") from error
    return parse_sample(value)


def parse_sample(value: Any) -> Sample:
    """Parse and check {"messages" | "conversations": [{"role", "content"}], "images", "videos"}.

    Other keys are ignored. The keys of LLaVA's files are accepted too: "from" and "value" for "role" and "content";
    "image" and "video", one path or a list, for "images" and "videos". Raises SampleError: invalid_sample, empty_turn,
    no_answer or mark_count.
    """
    if not isinstance(value, dict):
        raise SampleError(Reason.INVALID_SAMPLE, f"a sample is a JSON object, this is {type(value).__name__}")
    messages = value.get("messages") or value.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise SampleError(Reason.INVALID_SAMPLE, "no list of turns under 'messages' or 'conversations'")
    return checked_sample(parse_turns(messages), parse_paths(value, "image"), parse_paths(value, "video"))


def checked_sample(turns: Sequence[Turn], images: Sequence[MediaRef], videos: Sequence[MediaRef]) -> Sample:
    """Check that a sample has an answer and a mark per media file. Raises SampleError: no_answer or mark_count."""
    if all(turn.role != "assistant" for turn in turns):
        raise SampleError(Reason.NO_ANSWER, "no assistant turn, so there is nothing to learn")
    check_marks(turns, len(images), len(videos))
    return Sample(tuple(turns), tuple(images), tuple(videos))


def parse_turns(messages: Sequence[Any]) -> tuple[Turn, ...]:
    """Parse a list of {"role", "content"}. Raises SampleError: invalid_sample or empty_turn."""
    return tuple(_parse_turn(number, message) for number, message in enumerate(messages))


def _parse_turn(number: int, message: Any) -> Turn:
    if isinstance(message, Turn):
        return message
    if not isinstance(message, dict):
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} is {type(message).__name__}, not an object")
    role = message.get("role", message.get("from"))
    text = message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} has the role {role!r}; known are {', '.join(ROLES)}")
    if text is None or (isinstance(text, str) and not text.strip()):
        raise SampleError(Reason.EMPTY_TURN, f"turn {number} ({role}) has no text")
    if not isinstance(text, str):
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} has content of type {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} holds half a surrogate pair: {error}") from error
    return Turn(ROLES[role], text)


def parse_paths(value: dict, noun: str) -> tuple[str, ...]:
    """Parse the paths under "images" or "image" (`noun` is image or video). Raises SampleError(invalid_sample)."""
    key, paths = f"{noun}s", value.get(f"{noun}s")
    if paths is None:
        key, paths = noun, value.get(noun)
        paths = [paths] if isinstance(paths, str) else paths
    if paths is None:
        return ()
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise SampleError(Reason.INVALID_SAMPLE, f"'{key}' is not a list of paths")
    strange = [path for path in paths if not is_path(path)]
    if strange:
        raise SampleError(Reason.INVALID_SAMPLE, f"'{key}' holds {strange[0]!a:.60}, which is not a valid path")
    return tuple(paths)


def is_path(text: str) -> bool:
    """Return whether a text may be a path: not empty, no zero byte, no half of a surrogate pair."""
    try:
        return b"\0" not in text.encode() and text != ""
    except UnicodeEncodeError:
        return False


def check_marks(turns: Sequence[Turn], num_images: int | None, num_videos: int | None) -> None:
    """Raises SampleError(mark_count) unless the text has one mark for each picture and for each video.

    Marks whose number is None are not checked.
    """
    for mark, given, noun in ((IMAGE_MARK, num_images, "pictures"), (VIDEO_MARK, num_videos, "videos")):
        marks = sum(turn.text.count(mark) for turn in turns)
        if given is not None and marks != given:
            raise SampleError(
                Reason.MARK_COUNT,
                f"the text has {marks} {mark} marks for {given} {noun}; write one where each of the {noun} belongs",
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
