"""Pictures and videos told apart by the ends of their names."""

from __future__ import annotations

PICTURES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm", "pnm", "avif"),
    *("jp2", "j2k", "ico", "pcx", "tga", "heic", "heif", "jxl", "svg", "psd"),
)
VIDEOS = (
    *("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "m2ts", "mts", "ts", "flv", "wmv", "asf", "ogv"),
    *("3gp", "mxf", "rm", "vob"),
)
"""What follows the last dot, in small letters. Those that nothing here reads are there too: a sample whose picture is
not known as one would be trained on, or left out, without a word."""


def ending(name: str) -> str:
    """What follows the last dot of a name, in small letters; empty where there is none."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
