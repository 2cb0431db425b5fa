"""Convert a record of named values, from a table, an archive or a caption file, to a Sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longvita.config.schema import PROMPT
from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.media.media_file import FilePart, InlineMedia, MediaRef
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, Sample, Turn, checked_sample, is_path, mark_media, parse_turns

COLUMNS = {
    "messages": ("messages", "conversations", "texts"),
    "question": ("question",),
    "answer": ("answer",),
    "caption": ("caption", "text"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
}
"""Purposes of a record's values, and the names they may have if the config gives none, first match first."""


@dataclass(frozen=True)
class FormatOptions:
    """Settings of a source's files in addition to their format."""

    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of a key of COLUMNS and its name in the files."""
    prompt: str = PROMPT
    """Question of a caption."""

    @classmethod
    def of(cls, columns: Mapping[Any, str], prompt: str) -> FormatOptions:
        """The options of a source's config."""
        return cls(tuple(sorted(columns.items())), prompt)

    def names_of(self, purpose: str) -> tuple[str, ...]:
        """Names that the value of a purpose may have."""
        return tuple(name for key, name in self.columns if key == purpose) or COLUMNS[purpose]


NO_OPTIONS = FormatOptions()
"""The options of a source without such settings."""


def format_options(columns: Sequence[str], prompt: str | None) -> FormatOptions:
    """Parse columns WHAT=NAME of a command line. Raises DataError for another form or an unknown WHAT."""
    pairs = []
    for text in columns:
        purpose, _, name = text.partition("=")
        if purpose not in COLUMNS or not name:
            raise DataError(f"--column {text!r} is not WHAT=NAME with a WHAT of {', '.join(COLUMNS)}")
        pairs.append((purpose, name))
    return FormatOptions(tuple(sorted(pairs)), prompt or PROMPT)


def record_sample(record: Mapping[str, Any], options: FormatOptions) -> Sample:
    """Convert a record, by its messages, its question and answer, or its caption, to a sample.

    If the text has no mark, the pictures and videos are placed before the first question. Raises SampleError.
    """
    images, videos = (_media(_value(record, noun, options), noun) for noun in ("images", "videos"))
    turns, is_caption = _turns(record, options)
    if is_caption and not images and not videos:
        raise SampleError(Reason.INVALID_SAMPLE, "a caption without a picture or video")
    if not any(mark in turn.text for turn in turns for mark in (IMAGE_MARK, VIDEO_MARK)):
        turns = _marked(turns, len(images), len(videos))
    return checked_sample(turns, images, videos)


def parse_object(content: bytes | str, name: str) -> dict[str, Any]:
    """Parse a text of a record. Raises SampleError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError(Reason.INVALID_JSON, f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SampleError(Reason.INVALID_SAMPLE, f"{name} holds {type(value).__name__}, not an object")
    return value


def _value(record: Mapping[str, Any], purpose: str, options: FormatOptions) -> Any:
    return next((record[name] for name in options.names_of(purpose) if record.get(name) is not None), None)


def _turns(record: Mapping[str, Any], options: FormatOptions) -> tuple[tuple[Turn, ...], bool]:
    """The turns of a record, and whether they are of a caption."""
    messages = _value(record, "messages", options)
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise SampleError(Reason.INVALID_SAMPLE, f"the messages are {type(messages).__name__}, not a list of turns")
        return parse_turns([turn for message in messages for turn in _plain(message)]), False
    question, answer = _value(record, "question", options), _value(record, "answer", options)
    is_caption = answer is None
    if is_caption:
        question, answer = options.prompt, _value(record, "caption", options)
    if question is None or answer is None:
        raise SampleError(
            Reason.INVALID_SAMPLE,
            f"no messages, no question and answer, no caption among {_names_in(record)}; name them in the source's "
            "columns",
        )
    answer = str(answer) if isinstance(answer, int | float) else answer
    turns = parse_turns([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    return turns, is_caption


def _names_in(record: Mapping[str, Any]) -> str:
    """The names of a record's values; those of nulls are marked."""
    return ", ".join(f"{name} (null)" if value is None else str(name) for name, value in record.items()) or "nothing"


def _plain(message: Any) -> list[Any]:
    """Turns with role and text from a message: from keys "user" and "assistant", and from content in several parts."""
    if not isinstance(message, dict):
        return [message]
    if "user" in message and "assistant" in message:
        return [{"role": role, "content": message[role]} for role in ("user", "assistant")]
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return [{**message, "content": "".join(map(_text_of, content))}]
    return [message]


def _text_of(part: Mapping[str, Any]) -> str:
    marks = {"image": IMAGE_MARK, "video": VIDEO_MARK}
    return marks.get(str(part.get("type")), str(part.get("text") or ""))


def _marked(turns: Sequence[Turn], num_images: int, num_videos: int) -> tuple[Turn, ...]:
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return tuple(turns)
    marked = Turn("user", mark_media(turns[first].text, num_images, num_videos))
    return (*turns[:first], marked, *turns[first + 1 :])


def _media(value: Any, noun: str) -> list[MediaRef]:
    values = value if isinstance(value, list) else [value]
    return [_media_ref(one, f"{noun}[{number}]") for number, one in enumerate(values) if one is not None]


def _media_ref(value: Any, name: str) -> MediaRef:
    """The reference of a path, bytes, a struct {"bytes", "path"}, or a FilePart."""
    if isinstance(value, dict):
        path = value.get("path")
        name = path if isinstance(path, str) and is_path(path) else name
        value = path if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return InlineMedia(value, name)
    if isinstance(value, FilePart | InlineMedia):
        return value
    if not isinstance(value, str) or not is_path(value):
        raise SampleError(Reason.INVALID_SAMPLE, f"{name} is no path, bytes or struct of both, but {value!a:.60}")
    return value
