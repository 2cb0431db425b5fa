"""The messages of a record as turns: keys, roles, loss, content in parts, and pictures and videos inside the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.media_refs import DATA_ADDRESS, FILE_ADDRESS, REFERENCES, media_ref, transposed
from longvita.data.formats.text import parse_json
from longvita.data.formats.unread_media import TURN
from longvita.data.media.media_file import MediaRef
from longvita.data.media.suffixes import PICTURES, ending
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, Turn, chat_role, checked_text
from longvita.errors import MAX_WORD, shorten

ROLE_KEYS, TEXT_KEYS, LOSS_KEYS = ("role", "from"), ("content", "value"), ("loss", "weight")
"""Keys of a turn; the first with a value is used."""
TURN_KEYS = frozenset((*ROLE_KEYS, *TEXT_KEYS, *LOSS_KEYS))
PAIRS = (("user", "assistant"), ("question", "answer"))
"""Keys of a question and its answer in one struct."""
PART_KINDS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("image", "image_url", "input_image"), IMAGE_MARK),
    **dict.fromkeys(("video", "video_url", "input_video"), VIDEO_MARK),
}
"""Types of the parts of a content: text, or the mark of a picture or video."""
PART_MEDIA = ("image", "image_url", "video", "video_url", "source", *REFERENCES)
"""Keys of a part that may hold its picture or video."""
INLINE = re.compile(r"<img>([^<>\n]*)</img>")
"""A picture in the text, as Qwen-VL writes it."""
MARKS = re.compile(f"({IMAGE_MARK}|{VIDEO_MARK})")


class _Mark(NamedTuple):
    """A mark in a text."""

    mark: str
    own: MediaRef | None = None
    """Its own picture or video."""
    is_part: bool = False
    """Whether it stands for a part of the content."""


@dataclass
class Messages:
    """The turns of a record."""

    turns: list[Turn] = field(default_factory=list)
    owned: dict[str, list[MediaRef | None]] = field(default_factory=lambda: {IMAGE_MARK: [], VIDEO_MARK: []})
    """For each kind of mark, the own picture or video of each, None for a mark without."""
    bare_parts: set[str] = field(default_factory=set)
    """The marks of parts that stand for a picture or video and hold none."""
    unused: dict[str, Any] = field(default_factory=dict)
    """Keys of turns that are not used, and the first value of each."""


def parse_messages(value: Any, roles: Sequence[tuple[str, str]]) -> Messages:
    """Parse a list of messages, or a struct of lists, or either as JSON text. Raises SampleError.

    roles: pairs of another role word and its ChatML role.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parse_json(value.encode(errors="surrogatepass"), "the text of the messages")
    value = transposed(value)
    if not isinstance(value, list) or not value:
        raise SampleError(Reason.INVALID_SAMPLE, f"the messages are {type(value).__name__}, not a list of turns")
    found = Messages()
    for message in value:
        _add_message(found, message, roles)
    return found


def add_turn(found: Messages, role: str, content: Any, has_loss: bool = True) -> None:
    """Add a turn of a ChatML role. Raises SampleError: invalid_sample or empty_turn."""
    number = len(found.turns)
    marks: list[_Mark] = []
    text = "".join(_piece(part, number, marks) for part in _parts(content))
    if role != "system" and not text.strip():
        raise SampleError(Reason.EMPTY_TURN, f"turn {number} ({role}) has no text")
    for one in marks:
        found.owned[one.mark].append(one.own)
        if one.is_part and one.own is None:
            found.bare_parts.add(one.mark)
    found.turns.append(Turn(role, text, has_loss or role != "assistant"))


def _add_message(found: Messages, message: Any, roles: Sequence[tuple[str, str]]) -> None:
    number = len(found.turns)
    if not isinstance(message, dict):
        raise SampleError(Reason.INVALID_SAMPLE, f"turn {number} is {type(message).__name__}, not an object")
    pair = next((keys for keys in PAIRS if message.get(keys[0]) is not None and message.get(keys[1]) is not None), None)
    if pair:
        add_turn(found, "user", message[pair[0]])
        add_turn(found, "assistant", message[pair[1]])
        used = frozenset(pair)
    else:
        _check_keys(message, number)
        role = chat_role(_first(message, ROLE_KEYS), number, roles)
        content = _first(message, TEXT_KEYS)
        if content is None:
            raise SampleError(Reason.EMPTY_TURN, f"turn {number} ({role}) has no text")
        add_turn(found, role, content, _has_loss(message, number))
        used = TURN_KEYS
    for key, unused in message.items():
        if key not in used and unused not in (None, "", []):
            found.unused.setdefault(f"{TURN}{key}", unused)


def _check_keys(message: Mapping[str, Any], number: int) -> None:
    """Raise SampleError for a turn that has no key of a role."""
    if _first(message, ROLE_KEYS) is None:
        keys, pairs = shorten(", ".join(map(str, message))), " or ".join(" and ".join(keys) for keys in PAIRS)
        raise SampleError(
            Reason.INVALID_SAMPLE,
            f"turn {number} has no {' or '.join(ROLE_KEYS)}, but {keys or 'nothing'}; fix: write role and content, or "
            f"{pairs}, or name one text in the source's columns, such as question: LIST.0.KEY",
        )


def _first(message: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first value that is not empty, else an empty one, None if there is none."""
    empty = None
    for key in keys:
        value = message.get(key)
        if value or value == 0:
            return value
        empty = value if empty is None else empty
    return empty


def _has_loss(message: Mapping[str, Any], number: int) -> bool:
    """Whether the turn is learned. Raises SampleError for a weight between 0 and 1, and for two that differ."""
    given = {key: message[key] for key in LOSS_KEYS if message.get(key) is not None}
    if not given:
        return True
    strange = [key for key, value in given.items() if value not in (0, 1)]
    if strange or len({bool(value) for value in given.values()}) > 1:
        values = ", ".join(f"{key} {shorten(ascii(value), MAX_WORD)}" for key, value in given.items())
        raise SampleError(
            Reason.INVALID_SAMPLE, f"turn {number} has {values}; fix: 0 or 1 (or false, true), the same in both"
        )
    return all(given.values())


def _parts(content: Any) -> list[Any]:
    """The parts of a content: one text, or structs of a type."""
    content = transposed(content)
    is_list = isinstance(content, list) and content and all(isinstance(part, dict) for part in content)
    return content if is_list else [content]


def _piece(part: Any, number: int, marks: list[_Mark]) -> str:
    """The text of a part; adds its marks to `marks`."""
    if not isinstance(part, dict):
        return _with_inline(checked_text(part, number), number, marks)
    given = {key: value for key, value in part.items() if value is not None}
    kind = str(given.get("type") or next((key for key in ("image", "video", "text") if key in given), "none"))
    if kind not in PART_KINDS:
        raise SampleError(
            Reason.INVALID_SAMPLE,
            f"turn {number} has a part of type {shorten(ascii(kind), MAX_WORD)}; known are {', '.join(PART_KINDS)}; "
            "fix: leave it out",
        )
    mark = PART_KINDS[kind]
    if mark == "text":
        return _with_inline(checked_text(given.get("text", ""), number), number, marks)
    marks.append(_Mark(mark, _own_media(given, f"turn {number} part {len(marks)}"), is_part=True))
    return mark


def _own_media(part: Mapping[str, Any], name: str) -> MediaRef | None:
    """The picture or video that a part holds. Raises SampleError."""
    held = {key: part[key] for key in PART_MEDIA if part.get(key) not in (None, "", [], {})}
    if not held:
        return None
    key, value = next(iter(held.items()))
    if isinstance(value, list) and len(value) > 1:
        raise SampleError(
            Reason.INVALID_SAMPLE,
            f"{shorten(name)} has {len(value)} files under {key!r}; fix: a video file, or its folder",
        )
    if key in REFERENCES:
        return media_ref(held, name)
    return media_ref(value[0] if isinstance(value, list) else value, name)


def _with_inline(text: str, number: int, marks: list[_Mark]) -> str:
    """The text with a mark for each picture that it names as Qwen-VL does."""
    pieces = INLINE.split(text)
    for place, piece in enumerate(pieces):
        if place % 2 and not _is_inline_picture(piece):
            pieces[place] = f"<img>{piece}</img>"
        elif place % 2:
            pieces[place] = IMAGE_MARK
            marks.append(_Mark(IMAGE_MARK, media_ref(piece.strip(), f"turn {number} part {len(marks)}")))
        else:
            marks += map(_Mark, MARKS.findall(piece))
    return "".join(pieces)


def _is_inline_picture(text: str) -> bool:
    return ending(text.strip()) in PICTURES or bool(re.match(f"https?://|{FILE_ADDRESS}|{DATA_ADDRESS.pattern}", text))
