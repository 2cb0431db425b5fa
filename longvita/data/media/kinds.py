"""Pictures and videos told apart by the ends of their names."""

from __future__ import annotations

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
VIDEOS = ("mp4", "mkv", "webm", "avi", "mov", "m4v")
"""What follows the last dot, in small letters."""


def ending(name: str) -> str:
    """What follows the last dot of a name, in small letters; empty where there is none."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
