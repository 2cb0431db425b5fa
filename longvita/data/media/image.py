"""Cut pictures into tiles: the grid nearest to a picture's aspect ratio, a thumbnail first, each tile normalised.

The tiling is InternVL's ("dynamic", arXiv 2404.16821) as in Long-VITA. Pixels stay uint8 [n, S, S, 3] as long as
possible; `normalise` converts them to the vision tower's float32 input.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from longvita.data.errors import MediaError, Reason, one_line
from longvita.data.media.media_file import MediaFile, opened, reader_errors

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean, R G B."""
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation, R G B."""
PADDING_COLOUR = tuple(int(255 * mean) for mean in IMAGE_MEAN)
"""Colour of the bars that make a frame square."""
MAX_PIXELS = 178_956_970
"""Largest picture that is opened, pixels: Pillow's own limit against decompression bombs."""
PICTURE_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names of the formats that are read (MPO is read as JPEG). Pillow detects the format by a file's content: it
would make Ghostscript run the program in a PostScript file."""
HEADER_EXIF_FORMATS = ("JPEG", "MPO", "TIFF", "WEBP")
"""Formats with the orientation in the header; other formats have it only if the header has an EXIF block."""


@dataclass(frozen=True)
class Grid:
    """Tile grid of a picture: columns x rows tiles, and a thumbnail before them if there is more than one."""

    columns: int
    rows: int

    @property
    def is_tiled(self) -> bool:
        """Whether there are tiles in addition to the thumbnail."""
        return self.columns * self.rows > 1

    @property
    def num_tiles(self) -> int:
        """Tiles, with the thumbnail."""
        return self.columns * self.rows + self.is_tiled


@dataclass(frozen=True)
class TiledImage:
    """A picture cut into tiles."""

    columns: int
    """Tiles in a row."""
    rows: int
    """Rows of tiles."""
    tiles: Tensor
    """[n, 3, S, S] float32, normalised: the thumbnail first if there is more than one tile, then row by row."""


@functools.lru_cache(maxsize=8)
def candidate_grids(max_num_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of at most `max_num_tiles` tiles, fewest tiles first."""
    sides = range(1, max_num_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_num_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


@functools.lru_cache(maxsize=65536)
def choose_grid(width: int, height: int, max_num_tiles: int = 12, image_size: int = 448) -> Grid:
    """Choose the grid whose aspect ratio is nearest to width / height, both in pixels.

    Of two equally near, the larger is chosen only if the picture has more than half of its pixels.
    """
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in candidate_grids(max_num_tiles):
        distance = abs(aspect - columns / rows)
        worth_more_tiles = width * height > 0.5 * image_size * image_size * columns * rows
        if distance < best_distance or (distance == best_distance and worth_more_tiles):
            best, best_distance = (columns, rows), distance
    return Grid(*best)


def tile_image(picture: Image.Image, max_num_tiles: int = 12, image_size: int = 448) -> TiledImage:
    """Cut a PIL picture of any mode into normalised tiles of `image_size` x `image_size` pixels.

    Raises MediaError if the picture's pixels cannot be read.
    """
    import torch  # Only here: the decoding processes do not import torch.

    upright = to_upright_rgb(picture)
    grid = choose_grid(*upright.size, max_num_tiles, image_size)
    pixels = cut_tiles(upright, grid, image_size, range(grid.num_tiles))
    return TiledImage(grid.columns, grid.rows, torch.from_numpy(normalise(pixels)))


def resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an RGB picture to (width, height), bicubic, with identical pixels under every version of Pillow.

    Pillow rounds to 8 bits between its horizontal and its vertical pass. Up to version 12 the horizontal pass came
    first. Version 13 starts with the vertical pass if that removes more than twice as many pixels. This is the order
    of 13.
    """
    width, height = size
    rows_lost, columns_lost = picture.height - height, picture.width - width
    is_vertical_first = rows_lost > 0 and rows_lost > 2 * columns_lost
    between = (picture.width, height) if is_vertical_first else (width, picture.height)
    return picture.resize(between, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def cut_tiles(
    picture: Image.Image, grid: Grid, image_size: int, wanted: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
    """Cut the `wanted` tiles (0 is the thumbnail of a tiled picture) of an upright RGB picture: uint8 [k, S, S, 3].

    They are written to `out` if it is given.
    """
    size = image_size
    tiles = np.empty((len(wanted), size, size, 3), np.uint8) if out is None else out
    resized: np.ndarray | None = None
    for slot, number in enumerate(wanted):
        if not grid.is_tiled or number == 0:
            tiles[slot] = np.asarray(resize(picture, (size, size)))
            continue
        if resized is None:
            resized = np.asarray(resize(picture, (grid.columns * size, grid.rows * size)))
        row, column = divmod(number - 1, grid.columns)
        tiles[slot] = resized[row * size : (row + 1) * size, column * size : (column + 1) * size]
    return tiles


def square_tile(picture: Image.Image, image_size: int) -> np.ndarray:
    """Pad a frame to a square with the mean colour and resize it to one tile, uint8 [S, S, 3].

    Raises MediaError if the square would have more than MAX_PIXELS.
    """
    width = side = max(picture.size)
    if side**2 > MAX_PIXELS:
        size = f"{picture.width} x {picture.height} pixels"
        raise MediaError(Reason.BROKEN_VIDEO, f"a frame of {size} makes a square of more than {MAX_PIXELS}")
    if picture.height < side:
        # For a square the horizontal pass comes first, row by row, and does not change the bars above and below.
        width = image_size
        picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    if picture.size != (width, side):
        padded = Image.new("RGB", (width, side), PADDING_COLOUR)
        padded.paste(picture, ((width - picture.width) // 2, (side - picture.height) // 2))
        picture = padded
    return np.asarray(resize(picture, (image_size, image_size)))


def normalise(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Normalise uint8 [n, S, S, 3] by ImageNet's mean and standard deviation to float32 [n, 3, S, S], in `out`."""
    tiles = np.empty((pixels.shape[0], 3, *pixels.shape[1:3]), np.float32) if out is None else out
    for tile, source in zip(tiles, pixels):
        for colour in range(3):
            # One colour of one tile fits into the processor's cache.
            plane = np.divide(source[..., colour], np.float32(255), out=tile[colour], dtype=np.float32)
            plane -= np.float32(IMAGE_MEAN[colour])
            plane /= np.float32(IMAGE_STD[colour])
    return tiles


def open_picture(
    path: MediaFile, size: tuple[int, int] | None = None, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a picture file as an upright RGB picture, the first one of an animation.

    size: width and height that the upright picture must have, pixels. min_size: width and height that are enough; a
    JPEG file is then decoded at 1/2, 1/4 or 1/8 of its size if both are still reached.
    Raises MediaError for a missing file, one that is no picture or is truncated, one larger than MAX_PIXELS and one of
    another size.
    """
    with _opened(path) as picture:
        if size is not None:
            check_size_as_indexed(upright_size(picture), size)
        if min_size is not None and picture.format == "JPEG":
            picture.draft(None, min_size[::-1] if _orientation(picture) >= 5 else min_size)
        return to_upright_rgb(picture)


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """The formats of PICTURE_FORMATS that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in PICTURE_FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _opened(path: MediaFile) -> Iterator[Image.Image]:
    """Open a picture file of a permitted size; errors name it."""
    with reader_errors(path, "picture"), opened(path) as file, Image.open(file, formats=picture_formats()) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height} pixels"
            raise MediaError(Reason.BROKEN_PICTURE, f"{size} are more than the {MAX_PIXELS} that are opened")
        yield picture


def check_size_as_indexed(size: tuple[int, int], indexed: tuple[int, int]) -> None:
    """Raise MediaError if an upright picture has another size (width, height) than when it was indexed."""
    if size != indexed:
        raise MediaError(
            Reason.BROKEN_PICTURE,
            f"it is {size[0]} x {size[1]} pixels and was {indexed[0]} x {indexed[1]} when it was indexed; rebuild "
            "its index (longvita data index --rebuild)",
        )


def probe_picture(path: MediaFile) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from its header alone. Raises MediaError as `open_picture`."""
    with _opened(path) as picture:
        return upright_size(picture)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a PIL picture after it is turned upright; nothing is decoded."""
    return picture.size[::-1] if _orientation(picture) >= 5 else picture.size


def to_upright_rgb(picture: Image.Image) -> Image.Image:
    """Convert any PIL picture to RGB: turned by its EXIF, transparency on white, 16-bit and float scaled to 8 bits."""
    try:
        turn = _orientation(picture) > 1
        picture.load()
        if turn:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            return _deep_to_rgb(picture)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:  # Pillow raises errors of many kinds for damaged files.
        raise MediaError(Reason.BROKEN_PICTURE, f"its pixels cannot be read: {one_line(error)}") from error


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1 to 8, 1 if the header has none."""
    if picture.format in HEADER_EXIF_FORMATS or "exif" in picture.info:
        value = picture.getexif().get(0x0112, 1)
        return value if value in range(1, 9) else 1
    return 1


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
