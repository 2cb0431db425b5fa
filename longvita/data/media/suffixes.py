"""Suffixes of pictures and of videos."""

from __future__ import annotations

PICTURES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm", "pnm", "avif"),
    *("jp2", "j2k", "ico", "pcx", "tga", "heic", "heif", "hif", "jxl", "svg", "psd", "mpo", "pbm"),
)
VIDEOS = (
    *("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "m2ts", "mts", "ts", "flv", "wmv", "asf", "ogv"),
    *("3gp", "mxf", "rm", "vob"),
)
"""Suffixes in lower case. Formats that cannot be read are included: otherwise a sample with such a picture would be
trained on without it, or skipped, without an error."""


def ending(name: str) -> str:
    """The text after the last dot of a file name, in lower case; empty if there is no dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
