"""TIFF: the tags that the pixels of its first picture depend on, and its orientation."""

from __future__ import annotations

from typing import BinaryIO

from longvita.data.media.pictures.exif import ORDERS, ORIENTATION, XMP, read_directory, stated_orientation
from longvita.data.media.pictures.pieces import Piece, PixelPieces, size_of

SIGNATURES = tuple(ORDERS)
PIXEL_TAGS = frozenset(
    (
        *range(254, 260),  # kind of picture, sides, bits, compression
        *(262, 266, 273, 277, 278, 279, 284, 292, 293),  # colours, order of bits, strips, planes, options of fax
        *(317, 320, 322, 323, 324, 325),  # predictor, palette, tiles
        *(330, 332, 334, 338, 339, 347),  # pictures below this one, inks, extra samples, format, tables of JPEG
        *range(512, 522),  # old JPEG
        *range(529, 533),  # YCbCr
        *(48129, 50674),  # Windows Media Photo, LERC
    )
)


def split(file: BinaryIO) -> PixelPieces:
    """Replace the first directory, at its place, by one with PIXEL_TAGS alone.

    Pillow ends a directory at the first tag whose value is outside the file, and would turn the pixels by itself.
    """
    size, directory = size_of(file), read_directory(file)
    if directory is None:
        return PixelPieces([range(size)])
    tags = directory.with_tags(PIXEL_TAGS)
    pieces: list[Piece] = [range(directory.start), tags, range(directory.start + len(tags), size)]
    turned = stated_orientation(directory.number(ORIENTATION), directory.text(file, XMP))
    return PixelPieces(pieces, turned, in_place=True)
