"""Cut pictures into tiles: the grid nearest to a picture's aspect ratio, a thumbnail first, each tile normalised.

The tiling is InternVL's ("dynamic", arXiv 2404.16821) as in Long-VITA. Pixels stay uint8 [n, S, S, 3] as long as
possible; `normalise` converts them to the vision tower's float32 input.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.pictures.picture_file import MAX_PIXELS
from longvita.data.media.pictures.upright import to_upright_rgb

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean, R G B."""
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation, R G B."""
PADDING_COLOUR = tuple(int(255 * mean) for mean in IMAGE_MEAN)
"""Colour of the bars that make a frame square."""


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
