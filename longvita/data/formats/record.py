"""Convert a record of named values, of a line, a table, an archive or a caption file, to a Sample: the one way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longvita.config.schema import PROMPT, DatasetConfig
from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.dotted import missing_value, top_of, value_at
from longvita.data.formats.media_refs import holds_media, media_refs, placed
from longvita.data.formats.text import parse_json, parse_object
from longvita.data.formats.turns import Messages, add_turn, parse_messages
from longvita.data.formats.unread_media import describe_unread, unread_media
from longvita.data.media.media_file import MediaRef
from longvita.data.sample import (
    CHAT_ROLES,
    IMAGE_MARK,
    VIDEO_MARK,
    Sample,
    Turn,
    check_marks,
    checked_text,
    mark_media,
    marks_of,
)
from longvita.errors import shorten

COLUMNS = {
    "messages": ("conversations", "messages", "texts", "content_metadata.qAndA"),
    "question": ("question",),
    "answer": ("answer",),
    "caption": ("caption", "text", "captions", "txt"),
    "system": ("system",),
    "images": ("images", "image", "jpg", "jpeg", "png", "webp"),
    "videos": ("videos", "video", "video_path", "mp4", "mkv", "webm"),
}
"""Purposes of a record's values, and the names they may have if the config gives none, first match first. A dot leads
into a struct or a list."""
TEXT_KINDS = (("messages",), ("question", "answer"), ("caption",))
"""Purposes whose values are the text of a sample, the first that a record has."""
NESTED = "json"
"""A value with further values, as `datasets` names the JSON member of a WebDataset sample."""
WITHOUT_MEANING = ("id", "__key__", "__url__")
"""Names that are not counted as unused."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that are as good as none."""
WHOLE_FILM = ("-1", -1)
"""The idx of the caption of a complete film in ShareGPT4Video; the others are of its parts."""


@dataclass(frozen=True)
class FormatOptions:
    """Settings of a source's files in addition to their format."""

    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of a key of COLUMNS and its name in the files."""
    prompt: str = PROMPT
    """Question of a caption."""
    roles: tuple[tuple[str, str], ...] = ()
    """Pairs of a role word of the files and its ChatML role."""

    @classmethod
    def of(cls, dataset: DatasetConfig) -> FormatOptions:
        """The options of a source's config."""
        return cls(tuple(sorted(dataset.columns.items())), dataset.prompt, tuple(sorted(dataset.roles.items())))

    def names_of(self, purpose: str) -> tuple[str, ...]:
        """Names that the value of a purpose may have."""
        return tuple(name for key, name in self.columns if key == purpose) or COLUMNS[purpose]

    def text_kinds(self) -> list[tuple[str, ...]]:
        """Those of TEXT_KINDS that the config names, all if it names none."""
        named = {key for key, _ in self.columns}
        return [kind for kind in TEXT_KINDS if not named.isdisjoint(kind)] or list(TEXT_KINDS)


NO_OPTIONS = FormatOptions()
"""The options of a source without such settings."""


def format_options(columns: Sequence[str], prompt: str | None, roles: Sequence[str] = ()) -> FormatOptions:
    """Parse columns WHAT=NAME and roles WORD=ROLE of a command line. Raises DataError for another form."""
    pairs = []
    for text in columns:
        purpose, _, name = text.partition("=")
        if purpose not in COLUMNS or not name:
            raise DataError(f"--column {text!r} is not WHAT=NAME with a WHAT of {', '.join(COLUMNS)}")
        pairs.append((purpose, name))
    words = []
    for text in roles:
        word, _, role = text.rpartition("=")
        if role not in CHAT_ROLES or not word:
            raise DataError(f"--role {text!r} is not WORD=ROLE with a ROLE of {', '.join(CHAT_ROLES)}")
        words.append((word, role))
    return FormatOptions(tuple(sorted(pairs)), prompt or PROMPT, tuple(sorted(words)))


def parse_record(content: bytes, options: FormatOptions) -> Sample:
    """Convert a record as JSON text to a sample. Raises SampleError."""
    return record_sample(parse_object(content), options)


def record_sample(record: Mapping[str, Any], options: FormatOptions) -> Sample:
    """Convert a record, by its messages, its question and answer, or its caption, to a sample. Raises SampleError.

    If the text has no mark, the pictures and videos are placed before the first question. Without pictures (or videos)
    their marks are text. `<image>` marks of a record with videos alone are those of the videos, as in LLaVA-Video.
    """
    values = _Values(record, options)
    images, videos = (media_refs(values.take(noun), noun) for noun in ("images", "videos"))
    found, is_caption = _messages(values)
    _add_system(found, values)
    if not images and not videos and not any(map(any, found.owned.values())):
        _check_without_media(found, values, is_caption)
    _marks_of_videos(found, images, videos)
    if not any(found.owned.values()):
        found.turns = _marked(found.turns, len(images), len(videos))
    else:
        images, videos = (
            placed(found.owned[IMAGE_MARK], images, "images"),
            placed(found.owned[VIDEO_MARK], videos, "videos"),
        )
    if not any(turn.role == "assistant" and turn.has_loss for turn in found.turns):
        raise SampleError(Reason.NO_ANSWER, "no assistant turn with loss, so there is nothing to learn")
    check_marks(found.turns, len(images), len(videos))
    _check_marks_without_media(found, values, marks_of(len(images), len(videos)))
    unused = sorted({*found.unused, *values.unused()})
    return Sample(tuple(found.turns), tuple(images), tuple(videos), tuple(unused))


class _Values:
    """The values of a record by their purpose, and which of them were taken."""

    def __init__(self, record: Mapping[str, Any], options: FormatOptions):
        nested = record.get(NESTED)
        if isinstance(nested, str | bytes):
            nested = parse_json(nested.encode() if isinstance(nested, str) else nested, NESTED)
        more = {name: value for name, value in record.items() if name != NESTED}
        self.record = {**nested, **more} if isinstance(nested, dict) else dict(record)
        self.options = options
        self._taken: set[str] = set()

    def take(self, purpose: str) -> Any:
        """The first value that is not empty, else an empty one, None if there is none."""
        found = [
            (name, value)
            for name in self.options.names_of(purpose)
            if (value := value_at(self.record, name)) is not None
        ]
        for name, value in [pair for pair in found if pair[1] not in EMPTY] or found:
            self._taken.add(top_of(name, self.record))
            return value
        return None

    def give_back(self, purpose: str) -> None:
        """Count a value as unused although it was taken."""
        self._taken -= {top_of(name, self.record) for name in self.options.names_of(purpose)}

    def unused(self) -> dict[str, Any]:
        """The values that were not taken, without empty ones and those without a meaning."""
        skipped = {*self._taken, *WITHOUT_MEANING}
        return {str(name): value for name, value in self.record.items() if name not in skipped and value not in EMPTY}

    def several(self, purpose: str, texts: list) -> str:
        """Describe a purpose that has a list of texts in place of one, with the fix."""
        name = next(name for name in self.options.names_of(purpose) if value_at(self.record, name) not in EMPTY)
        first = f"{shorten(name)}.0.KEY" if any(isinstance(text, dict) for text in texts) else f"{shorten(name)}.0"
        count = sum(text is not None for text in texts)
        return f"{count} texts for {purpose}; fix: name one of them, such as columns: {{{purpose}: {first}}}"

    def no_text(self) -> str:
        """Describe why there is no text, with the fix: the config's first column of texts without a value, if any."""
        kinds = {purpose for kind in self.options.text_kinds() for purpose in kind}
        for purpose, name in self.options.columns:
            if purpose in kinds and value_at(self.record, name) in (None, []):
                return missing_value(self.record, purpose, name)
        fix = "fix: name them in the source's columns"
        return f"no messages, no question and answer, no caption among {self.names()}; {fix}"

    def names(self) -> str:
        """The names of the values; those of nulls are marked."""
        names = (f"{shorten(name)} (null)" if value is None else str(name) for name, value in self.record.items())
        return shorten(", ".join(names)) or "nothing"


def _messages(values: _Values) -> tuple[Messages, bool]:
    """The turns of a record, and whether they are of a caption. Raises SampleError."""
    for kind in values.options.text_kinds():
        taken = [values.take(purpose) for purpose in kind]
        if any(value is None or value == [] for value in taken):
            for purpose in kind:
                values.give_back(purpose)
            continue
        if kind == ("messages",):
            return parse_messages(taken[0], values.options.roles), False
        is_caption = kind == ("caption",)
        question, answer = (values.options.prompt, _caption(taken[0])) if is_caption else taken
        found = Messages()
        for number, (role, text) in enumerate((("user", question), ("assistant", answer))):
            if isinstance(text, list):
                raise SampleError(Reason.INVALID_SAMPLE, values.several(kind[-1] if number else kind[0], text))
            text = str(text) if isinstance(text, int | float) else text
            add_turn(found, role, checked_text(text, number))
        return found, is_caption
    raise SampleError(Reason.INVALID_SAMPLE, values.no_text())


def _caption(value: Any) -> Any:
    """One caption: of several that are numbered, that of the complete film; several others are returned."""
    if not isinstance(value, list):
        return value
    numbered = [one.get("content") for one in value if isinstance(one, dict) and one.get("idx") in WHOLE_FILM]
    texts = numbered or [one for one in value if one is not None]
    if len(texts) != 1:
        return value
    return texts[0]


def _add_system(found: Messages, values: _Values) -> None:
    """Put the record's system message before its turns, unless they begin with their own."""
    system = values.take("system")
    if system in EMPTY:
        return
    if found.turns[0].role == "system":
        if found.turns[0].text != system:
            values.give_back("system")
        return
    found.turns.insert(0, Turn("system", checked_text(system, 0)))


def _marks_of_videos(found: Messages, images: Sequence[MediaRef], videos: Sequence[MediaRef]) -> None:
    """Turn `<image>` marks to `<video>` ones if there are as many videos, no pictures and no other mark."""
    marks = found.owned[IMAGE_MARK]
    if images or any(marks) or found.owned[VIDEO_MARK] or len(marks) != len(videos):
        return
    found.turns = [replace(turn, text=turn.text.replace(IMAGE_MARK, VIDEO_MARK)) for turn in found.turns]
    found.owned = {IMAGE_MARK: [], VIDEO_MARK: marks}


def _marked(turns: Sequence[Turn], num_images: int, num_videos: int) -> list[Turn]:
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return list(turns)
    marked = replace(turns[first], text=mark_media(turns[first].text, num_images, num_videos))
    return [*turns[:first], marked, *turns[first + 1 :]]


def _check_without_media(found: Messages, values: _Values, is_caption: bool) -> None:
    """Raise SampleError if a record without media is not one of text alone: a caption, or one with unread media."""
    if not any(found.owned.values()):
        unused = {**values.unused(), **found.unused}
        name = unread_media(unused)
        if name is not None:
            raise SampleError(Reason.MARK_COUNT, describe_unread(name, unused[name]))
    if is_caption:
        raise SampleError(Reason.INVALID_SAMPLE, "a caption without a picture or video")


def _check_marks_without_media(found: Messages, values: _Values, used: Sequence[str]) -> None:
    """Raise SampleError(mark_count) if marks are left as text although the record has media for them."""
    left = [mark for mark, owned in found.owned.items() if owned and mark not in used]
    if not left:
        return
    held = next((name for name, value in values.unused().items() if holds_media(value)), None)
    if held is None and found.bare_parts.isdisjoint(left):
        return
    noun = "images" if left[0] == IMAGE_MARK else "videos"
    name = shorten(held)
    what = f"{name!r} is not read; fix: columns: {{{noun}: {name}}}" if held else "none is listed; fix: list them"
    count = len(found.owned[left[0]])
    raise SampleError(Reason.MARK_COUNT, f"the text has {count} {left[0]} marks for 0 {noun}, but {what}")
