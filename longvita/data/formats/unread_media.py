"""Find pictures and videos among the values that a sample does not use: it would be trained on without them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from longvita.data.formats.media_refs import REFERENCES, holds_media
from longvita.data.media.suffixes import VIDEOS, ending
from longvita.errors import shorten

VIDEO_WORDS = ("video", "film", "movie", "clip", "mp4")
WORDS = ("image", "img", "picture", "pic", "photo", "frame", "jpg", "jpeg", "png", "media", *VIDEO_WORDS)
"""A key with such a word, or a misspelt one, names media if its value may be some."""
FILE_WORDS = ("file", "path")
"""The same for the name of a file; too common to look for misspelt ones."""
MIN_LIKENESS = 0.8
"""Of a word of a key to one of WORDS, as of `imgae` to `image`; that of `manage` is 0.73."""
ADDRESS = re.compile(r"https?://\S+$")
TURN = "turn."
"""Prefix of the names of unused keys of turns."""


def unread_media(values: Mapping[str, Any]) -> str | None:
    """Return the name of the first value that is a picture or video, None if there is none.

    Bytes, base64 text and structs of bytes and a path are media under any name; the name of a file and an address
    only under a name of media, because `source` or `url` may name where a text comes from.
    """
    return next((name for name, value in values.items() if _is_file(value) or _may_be_media(name, value)), None)


def describe_unread(name: str, value: Any) -> str:
    """Say that a picture or video is not read, with the fix."""
    noun, shown = _noun(name, value), shorten(name)
    fix = f"list it in the record's {noun}" if name.startswith(TURN) else f"columns: {{{noun}: {shown}}}"
    return f"{shown!r} holds {noun} and is not read; fix: {fix}, or remove it from the records if they are text alone"


def _is_file(value: Any) -> bool:
    """Whether a value is the content of a file, or a struct or list of such."""
    if isinstance(value, list | tuple):
        return any(map(_is_file, value))
    if isinstance(value, dict):
        is_struct = {"bytes", "path"} <= value.keys() and holds_media(value)
        return is_struct or any(_is_file(value.get(key)) for key in REFERENCES)
    return holds_media(value) and not (isinstance(value, str) and _is_name(value))


def _may_be_media(name: str, value: Any) -> bool:
    """Whether the name is one of media, and the value that of a file or an address."""
    is_name = holds_media(value)
    if not is_name and not (isinstance(value, str) and ADDRESS.match(value)):
        return False
    lower = name.lower()
    likened = (difflib.get_close_matches(word, WORDS, 1, MIN_LIKENESS) for word in re.findall("[a-z]{4,}", lower))
    words = (*WORDS, *FILE_WORDS) if is_name else WORDS
    return any(word in lower for word in words) or any(likened)


def _noun(name: str, value: Any) -> str:
    first = value[0] if isinstance(value, list | tuple) and value else value
    is_video = isinstance(first, str) and ending(first) in VIDEOS
    return "videos" if is_video or any(word in name.lower() for word in VIDEO_WORDS) else "images"


def _is_name(text: str) -> bool:
    return "." in text and not text.startswith("data:")
