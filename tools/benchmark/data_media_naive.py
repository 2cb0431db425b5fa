"""The other side of data_media.py: float tiles made in the workers of a torch DataLoader, and films read by OpenCV.

It stands for the published way. What is written here again is what its worker does with a picture: cut, pad, resize,
scale and normalise each tile as float32, one after the other. Grids, chosen frames and the order of Pillow's passes are
ours, so that both sides have the same tiles to make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longvita.data.media.image import IMAGE_MEAN, IMAGE_STD, PADDING_COLOUR, choose_grid, resize
from longvita.data.media.video import frame_indices

SIZE = 448


def plain_tile(picture: Image.Image, size: int = SIZE) -> Image.Image:
    """A picture padded to a square and resized."""
    side = max(picture.size)
    if picture.size != (side, side):
        square = Image.new("RGB", (side, side), PADDING_COLOUR)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    return resize(picture, (size, size))


def float_tiles(pictures: Sequence[Image.Image]) -> Tensor:
    """float32 [n, 3, S, S], normalised."""
    mean, std = np.asarray(IMAGE_MEAN, np.float32), np.asarray(IMAGE_STD, np.float32)
    tiles = torch.ones([len(pictures), 3, SIZE, SIZE])
    for slot, picture in enumerate(pictures):
        values = np.array(plain_tile(picture), dtype=np.float32) / 255.0
        tiles[slot] = torch.tensor((values - mean) / std).permute(2, 0, 1)
    return tiles


def picture_tiles(path: Path) -> Tensor:
    """float32 [n, 3, S, S]: the tiles of a picture file."""
    picture = Image.open(path).convert("RGB")
    grid = choose_grid(*picture.size)
    if not grid.is_tiled:
        return float_tiles([picture])
    whole = resize(picture, (grid.columns * SIZE, grid.rows * SIZE))
    places = [(column * SIZE, row * SIZE) for row in range(grid.rows) for column in range(grid.columns)]
    parts = [whole.crop((left, top, left + SIZE, top + SIZE)) for left, top in places]
    return float_tiles([resize(picture, (SIZE, SIZE)), *parts])


def opencv_frames(path: Path, indices: Sequence[int]) -> Iterator[Image.Image]:
    """The frames of these numbers; every frame up to the last of them is read and converted."""
    capture = cv2.VideoCapture(str(path))
    wanted = set(indices)
    for number in range(indices[-1] + 1):
        there, pixels = capture.read()
        if not there:
            raise RuntimeError(f"OpenCV reads {number} frames of {path}")
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if number in wanted:
            yield Image.fromarray(pixels)


def clip_tiles(path: Path) -> Tensor:
    """float32 [n, 3, S, S]: one frame a second of a video file."""
    capture = cv2.VideoCapture(str(path))
    count, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    return float_tiles(list(opencv_frames(path, frame_indices(count, fps, 1.0, 63))))


class Sequences(Dataset):
    """Training sequences, each the tiles of the files that are packed in it."""

    def __init__(self, files: Sequence[Sequence[Path]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        """float32 [n, 3, S, S]."""
        read = {".jpg": picture_tiles, ".mp4": clip_tiles}
        return torch.cat([read[path.suffix](path) for path in self.files[number]])


def naive_loader(files: Sequence[Sequence[Path]], workers: int) -> Iterator[Any]:
    """The sequences' tiles, [1, n, 3, S, S] each, from a DataLoader with its own collate."""
    return iter(DataLoader(Sequences(files), batch_size=1, num_workers=workers))
