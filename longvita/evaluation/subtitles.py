"""SubRip subtitles, and which of them are on screen at some frames."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Subtitle:
    """One text on screen."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    text: str
    """On one line, without markup."""


def read_srt(path: Path) -> list[Subtitle]:
    """Read the subtitles of a file in order of time; anything else in it is skipped."""
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    times = [(number, match.groups()) for number, line in enumerate(lines) if (match := _TIMES.search(line))]
    subtitles = []
    # The line before a time line is the subtitle's number.
    ends = [number - 1 for number, _ in times[1:]]
    for (number, values), end in zip(times, [*ends, len(lines)], strict=False):
        text = " ".join(_MARKUP.sub("", " ".join(lines[number + 1 : end])).split())
        if text:
            subtitles.append(Subtitle(_seconds(values[:4]), _seconds(values[4:]), text))
    return sorted(subtitles, key=lambda subtitle: subtitle.start)


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def texts_at(subtitles: Sequence[Subtitle], times: Sequence[float]) -> list[str]:
    """List the texts on screen at any of `times` (seconds, ascending), each subtitle once, in order. A text that
    repeats the one before it is left out.
    """
    texts: list[str] = []
    for subtitle in subtitles:
        first = bisect.bisect_left(times, subtitle.start)
        if first < len(times) and times[first] <= subtitle.end and subtitle.text not in texts[-1:]:
            texts.append(subtitle.text)
    return texts
