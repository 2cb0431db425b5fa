"""Turn any PIL picture upright and convert it to RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason, one_line
from longvita.data.media.pictures import exif

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation."""
XMP_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats with an orientation in XMP; in a picture that was made from another, XMP may be that of the other."""


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of a picture after it is turned upright."""
    return size[::-1] if orientation >= 5 else size


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a PIL picture after it is turned upright. Raises MediaError."""
    orientation = orientation_of(picture)  # First: Pillow may know a TIFF picture's size only when it is loaded.
    return turned_size(picture.size, orientation)


def to_upright_rgb(picture: Image.Image) -> Image.Image:
    """Turn a PIL picture upright and convert it to RGB. Raises MediaError if its pixels cannot be read."""
    return to_rgb(picture, orientation_of(picture))


def orientation_of(picture: Image.Image) -> int:
    """Orientation 1 to 8 of a PIL picture, from its EXIF or XMP. Raises MediaError."""
    if picture.format == "TIFF":
        _load(picture)  # Pillow turns a TIFF picture while it loads it.
        return 1
    blocks = [picture.info.get("exif"), picture.info.get("xmp") if picture.format in XMP_FORMATS else None]
    return exif.orientation(*(block if isinstance(block, bytes) else b"" for block in blocks))


def to_rgb(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn a PIL picture and convert it to RGB: transparency on white, 16-bit and float scaled to 8 bits.

    Raises MediaError if its pixels cannot be read.
    """
    _load(picture)
    try:
        if orientation in TURNS:
            picture = picture.transpose(TURNS[orientation])
        if picture.mode.startswith("I") or picture.mode == "F":
            return _deep_to_rgb(picture)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:
        raise _unreadable(error) from error


def _load(picture: Image.Image) -> None:
    try:
        picture.load()
    except Exception as error:  # Pillow raises errors of many kinds for damaged files.
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> MediaError:
    return MediaError(Reason.BROKEN_PICTURE, f"its pixels cannot be read: {one_line(error)}")


def _deep_to_rgb(picture: Image.Image) -> Image.Image:
    """Convert one channel of more than 8 bits to RGB: 16-bit values by their upper byte, floats over their range."""
    values = np.asarray(picture)
    if picture.mode == "F":
        values = np.nan_to_num(values)
        low, high = float(values.min()), float(values.max())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (min(low, 0.0), max(high, 255.0))
        values = (values - low) / (high - low) * 255
    elif picture.mode.startswith("I;16") or int(values.max()) > 255:
        values = values.clip(0, 65535) // 256
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "L").convert("RGB")
