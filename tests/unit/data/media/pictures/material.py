"""Pictures with metadata, in every format that has any."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pillow_heif
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from longvita.data.media.media_file import InlineMedia

SIZE = (96, 64)
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is turned to be stored with each orientation."""


def upright() -> Image.Image:
    """A picture with another colour in each quarter, so that every turn of it differs."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:32, :48], pixels[:32, 48:], pixels[32:, :48], pixels[32:, 48:] = (
        (220, 30, 30),
        (30, 220, 30),
        (30, 30, 220),
        (240, 240, 240),
    )
    return Image.fromarray(pixels)


def stored(orientation: int) -> Image.Image:
    """The picture as it is stored with an orientation."""
    turn = STORED[orientation]
    return upright() if turn is None else upright().transpose(turn)


def exif(orientation: int) -> Image.Exif:
    """An EXIF block with an orientation."""
    block = Image.Exif()
    block[0x010F] = "Maker of the camera"
    block[0x0112] = orientation
    return block


def xmp(orientation: int) -> bytes:
    """An XMP packet with an orientation."""
    return f'<x:xmpmeta><rdf:Description tiff:Make="M" tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def png_xmp(orientation: int, is_compressed: bool = False) -> PngInfo:
    """XMP as PNG holds it."""
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode(), zip=is_compressed)
    return texts


def raw_profile(orientation: int) -> PngInfo:
    """EXIF as ImageMagick wrote it into PNG before there was a chunk for it."""
    block = exif(orientation).tobytes()
    digits = block.hex()
    rows = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    texts = PngInfo()
    texts.add_text("Raw profile type exif", "\n".join(["", "exif", f"{len(block):8}", *rows, ""]), zip=True)
    return texts


def write(picture: Image.Image, name: str, **options) -> bytes:
    """A picture file in one of Pillow's formats."""
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def write_heic(picture: Image.Image, **options) -> bytes:
    """A HEIC file."""
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, format="HEIF", quality=95, **options)
    return file.getvalue()


WRITERS: dict[str, Callable[[Image.Image, int], bytes]] = {
    "JPEG": lambda picture, turn: write(picture, "JPEG", exif=exif(turn), quality=95),
    "JPEG, XMP": lambda picture, turn: write(picture, "JPEG", xmp=xmp(turn), quality=95),
    "MPO": lambda picture, turn: write(
        picture, "MPO", exif=exif(turn), quality=95, save_all=True, append_images=[picture]
    ),
    "PNG": lambda picture, turn: write(picture, "PNG", exif=exif(turn)),
    "PNG, XMP": lambda picture, turn: write(picture, "PNG", pnginfo=png_xmp(turn)),
    "PNG, compressed XMP": lambda picture, turn: write(picture, "PNG", pnginfo=png_xmp(turn, is_compressed=True)),
    "PNG, raw profile": lambda picture, turn: write(picture, "PNG", pnginfo=raw_profile(turn)),
    "WebP": lambda picture, turn: write(picture, "WEBP", exif=exif(turn), lossless=True),
    "WebP, XMP": lambda picture, turn: write(picture, "WEBP", xmp=xmp(turn), lossless=True),
    "TIFF": lambda picture, turn: write(picture, "TIFF", exif=exif(turn)),
    "TIFF, LZW": lambda picture, turn: write(picture, "TIFF", exif=exif(turn), compression="tiff_lzw"),
    "BigTIFF": lambda picture, turn: write(picture, "TIFF", exif=exif(turn), big_tiff=True),
    "TIFF, XMP": lambda picture, turn: write(picture, "TIFF", tiffinfo={700: xmp(turn)}),
    "AVIF": lambda picture, turn: write(picture, "AVIF", exif=exif(turn), quality=95),
    "HEIC": lambda picture, turn: write_heic(picture, exif=exif(turn).tobytes()),
}
"""How a picture is written with an orientation."""


def inline(content: bytes) -> InlineMedia:
    """A picture file in memory."""
    return InlineMedia(content, "a picture")
