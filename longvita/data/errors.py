"""Why a sample cannot be used: a reason word for the counts, and a sentence for the person who fixes the data."""

from __future__ import annotations

import re
from enum import StrEnum

from longvita.errors import UserError, shorten


class Reason(StrEnum):
    """Reason words of the quarantine file and of its summary."""

    INVALID_JSON = "invalid_json"
    """The text is not JSON."""
    INVALID_SAMPLE = "invalid_sample"
    """The record has none of the forms that are read."""
    EMPTY_TURN = "empty_turn"
    """A turn other than a system turn has no text."""
    NO_ANSWER = "no_answer"
    """No assistant turn with loss, so no token has a loss."""
    MARK_COUNT = "mark_count"
    """The number of marks in the text differs from that of the pictures or videos."""
    MISSING_FILE = "missing_file"
    """A picture or video does not exist."""
    OUTSIDE_MEDIA_ROOT = "outside_media_root"
    """The path of a picture or video leads outside data.media_root."""
    BROKEN_PICTURE = "broken_picture"
    """A picture cannot be read."""
    BROKEN_VIDEO = "broken_video"
    """A video cannot be read or decoded."""
    WRONG_FORMAT = "wrong_format"
    """The file as a whole is not of the format that its source or its name says, or it is empty: one entry, line 1."""
    TOO_LONG = "too_long"
    """Longer than a sequence, even with the fewest frames of its videos."""


class DataError(UserError, ValueError):
    """Data that a run cannot use; the message names the config key or the file."""


class SampleError(UserError, ValueError):
    """A sample that cannot be used; `reason` is a Reason, the message names the part and what is wrong with it."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class MediaError(SampleError):
    """A picture or video that cannot be read; the message names the file."""


def one_line(error: Exception) -> str:
    """Shorten an error of a decoding library to one line."""
    if isinstance(error, MemoryError):
        return "it needs more memory than data.decode_memory_bytes allows a decoding process"
    lines = [re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "it", line) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {shorten(lines[0].strip()) if lines else ''}"
