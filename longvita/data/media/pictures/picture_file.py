"""Open picture files: their upright size from the header alone, and their pixels as RGB."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.media_file import MediaFile, opened, reader_errors
from longvita.data.media.pictures import boxes, exif, gif, jpeg, png, tiff, webp
from longvita.data.media.pictures.pieces import PixelPieces, SplicedFile, read_at
from longvita.data.media.pictures.upright import to_rgb, turned_size

MAX_PIXELS = 178_956_970
"""Most pixels that are decoded: Pillow's own limit against decompression bombs."""
DIVISORS = (1, 2, 4, 8)
"""Parts of its sides at which a JPEG or JPEG 2000 file can be decoded."""
PICTURE_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names of the formats that are read, in addition to HEIF (MPO is read as JPEG). The format is detected by a
file's content: Pillow would make Ghostscript run the program in a PostScript file."""
HEIF = "HEIF"
HEAD_BYTES = 512
"""Bytes by which a format is detected."""

Split = Callable[[BinaryIO], PixelPieces]
SIGNATURES: tuple[tuple[str, Split, tuple[bytes, ...]], ...] = (
    ("PNG", png.split, (png.SIGNATURE,)),
    ("JPEG", jpeg.split, (jpeg.SIGNATURE,)),
    ("GIF", gif.split, gif.SIGNATURES),
    ("TIFF", tiff.split, tiff.SIGNATURES),
    ("JPEG2000", boxes.split_jp2, (boxes.JP2_SIGNATURE,)),
    ("JPEG2000", boxes.split_codestream, (boxes.CODESTREAM_SIGNATURE,)),
)
"""Name, function and possible begins of the formats that have metadata."""


@dataclass(frozen=True)
class _Opened:
    """A picture file whose header is read."""

    picture: Image.Image
    orientation: int
    divisor: int
    """Part of its sides at which it is decoded, so that it has at most MAX_PIXELS."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture in the file."""
        return turned_size(self.picture.size, self.orientation)

    def reduce(self, min_size: tuple[int, int] | None) -> None:
        """Prepare to decode at a part of the sides; `min_size` as for open_picture."""
        if self.picture.format == "JPEG2000" and self.divisor > 1:
            _reduce_jpeg2000(self.picture, self.divisor)
        elif self.picture.format == "JPEG":
            largest = [max(1, side // self.divisor) for side in self.picture.size]
            enough = largest if min_size is None else turned_size(min_size, self.orientation)
            self.picture.draft(None, (min(largest[0], enough[0]), min(largest[1], enough[1])))


def open_picture(
    path: MediaFile, size: tuple[int, int] | None = None, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a picture file as an upright RGB picture, the first one of an animation.

    A JPEG or JPEG 2000 file with more than MAX_PIXELS is decoded at 1/2, 1/4 or 1/8 of its sides.
    size: width and height that the upright picture in the file must have, pixels. min_size: width and height that are
    enough; a JPEG file is then decoded at 1/2, 1/4 or 1/8 of its sides if both are still reached.
    Raises MediaError for a missing file, one that is no picture or is truncated, one that is too large and one of
    another size.
    """
    with _opened(path) as found:
        if size is not None:
            check_size_as_indexed(found.size, size)
        found.reduce(min_size)
        return to_rgb(found.picture, found.orientation)


def probe_picture(path: MediaFile) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from its header alone. Raises MediaError as `open_picture`."""
    with _opened(path) as found:
        return found.size


def check_size_as_indexed(size: tuple[int, int], indexed: tuple[int, int]) -> None:
    """Raise MediaError if an upright picture has another size (width, height) than when it was indexed."""
    if size != indexed:
        raise MediaError(
            Reason.BROKEN_PICTURE,
            f"it is {size[0]} x {size[1]} pixels and was {indexed[0]} x {indexed[1]} when it was indexed; rebuild "
            "its index (longvita data index --rebuild)",
        )


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """The formats of PICTURE_FORMATS that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in PICTURE_FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _opened(path: MediaFile) -> Iterator[_Opened]:
    """Open a picture file of a permitted size; errors name it."""
    with reader_errors(path, "picture"), opened(path) as source, _as_file(source) as file:
        name, split = _format_of(read_at(file, 0, HEAD_BYTES))
        if split is None:
            spliced, picture = PixelPieces([]), _open_other(source)
        else:
            spliced = split(file)
            picture = _open(name, io.BufferedReader(SplicedFile(file, spliced)))
        with picture:
            orientation = spliced.orientation
            if name == "AVIF":  # Pillow writes the properties of an AVIF picture as EXIF.
                orientation = exif.orientation(picture.info.get("exif", b""))
            yield _Opened(picture, orientation, _divisor(picture.size, spliced.max_reduction))


@contextlib.contextmanager
def _as_file(source: str | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, str):
        with open(source, "rb") as file:
            yield file
    else:
        yield source


def _format_of(head: bytes) -> tuple[str, Split | None]:
    """Name of the format that a file begins with, and how it is split; no function if it has no metadata."""
    for name, split, begins in SIGNATURES:
        if head.startswith(begins):
            return name, split
    if webp.is_webp(head):
        return "WEBP", webp.split
    brands = boxes.brands(head)
    if brands.intersection(boxes.AVIF_BRANDS) and "AVIF" in picture_formats():
        return "AVIF", boxes.split_items
    if brands.intersection(boxes.HEIC_BRANDS) - brands.intersection(boxes.AVIF_BRANDS):
        return HEIF, boxes.split_items
    return "", None


def _open(name: str, file: BinaryIO) -> Image.Image:
    """Open a file of a known format; Pillow's limit of pixels does not apply, because a picture may be reduced."""
    if name == HEIF:
        return _open_heif(file)
    Image.init()
    factory, _ = Image.OPEN[name]
    return factory(file, "")


def _open_other(source: str | BinaryIO) -> Image.Image:
    """Open a file of another format."""
    try:
        return Image.open(source, formats=picture_formats())
    except Image.DecompressionBombError as error:
        raise MediaError(Reason.BROKEN_PICTURE, f"{error}; {REMEDY}") from error


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        detail = f"it is HEIC, which pillow-heif reads ({error}); fix: pip install pillow-heif"
        raise MediaError(Reason.BROKEN_PICTURE, detail) from error
    return HeifImageFile(file, "")


REMEDY = "fix: make it smaller, or store it as baseline JPEG, which is then read at 1/2, 1/4 or 1/8 of its sides"


def _reduce_jpeg2000(picture: Any, divisor: int) -> None:
    """Prepare to decode at a part of the sides. Pillow's own `reduce` rounds the sides as the decoder does not."""
    (tile,) = picture.tile
    codec, _, *others = tile.args
    picture._size = _reduced(picture.size, divisor)
    picture.tile = [tile._replace(extents=(0, 0, *picture.size), args=(codec, divisor.bit_length() - 1, *others))]


def _reduced(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Width and height of a picture that is decoded at a part of its sides."""
    return -(-size[0] // divisor), -(-size[1] // divisor)


def _divisor(size: tuple[int, int], max_reduction: int) -> int:
    """Smallest part of the sides with at most MAX_PIXELS. Raises MediaError if that is less than the format allows."""
    for divisor in DIVISORS:
        if divisor <= max_reduction and math.prod(_reduced(size, divisor)) <= MAX_PIXELS:
            return divisor
    detail = f"{size[0]} x {size[1]} pixels are more than the {MAX_PIXELS} that are opened; {REMEDY}"
    raise MediaError(Reason.BROKEN_PICTURE, detail)
