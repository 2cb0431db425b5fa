"""Pictures printed in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.text import Text

from longvita.data.media.video import read_frames

_TERMINAL_SIDE = 16
_GAP = "  "


def first_frames(path: Path, count: int) -> list[Image.Image]:
    """The first `count` frames of a video."""
    return list(read_frames(path, range(count)))


def in_terminal(pictures: Sequence[Image.Image]) -> Text:
    """Pictures side by side in half blocks: each character shows two pixels, one above the other."""
    small = [picture.convert("RGB").resize((_TERMINAL_SIDE, _TERMINAL_SIDE)) for picture in pictures]
    text = Text()
    for row in range(0, _TERMINAL_SIDE, 2):
        for picture in small:
            for column in range(_TERMINAL_SIDE):
                upper, lower = picture.getpixel((column, row)), picture.getpixel((column, row + 1))
                text.append("▀", style=f"{_hex(upper)} on {_hex(lower)}")
            text.append(_GAP)
        text.append("\n")
    return text


def _hex(pixel: Any) -> str:
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"
