"""The reference of data_media.py: float tiles computed in the workers of a torch DataLoader, and films read by OpenCV.

It represents the published code, whose worker crops, pads, resizes, scales and normalizes each tile as float32, one
after the other. Grids, selected frames and the order of Pillow's operations are ours, so that both sides compute the
same tiles.
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
    """Normalized tiles, float32 [n, 3, S, S]."""
    mean, std = np.asarray(IMAGE_MEAN, np.float32), np.asarray(IMAGE_STD, np.float32)
    tiles = torch.ones([len(pictures), 3, SIZE, SIZE])
    for slot, picture in enumerate(pictures):
        values = np.array(plain_tile(picture), dtype=np.float32) / 255.0
        tiles[slot] = torch.tensor((values - mean) / std).permute(2, 0, 1)
    return tiles


def picture_tiles(path: Path) -> Tensor:
    """The tiles of a picture file, float32 [n, 3, S, S]."""
    picture = Image.open(path).convert("RGB")
    grid = choose_grid(*picture.size)
    if not grid.is_tiled:
        return float_tiles([picture])
    scaled = resize(picture, (grid.columns * SIZE, grid.rows * SIZE))
    places = [(column * SIZE, row * SIZE) for row in range(grid.rows) for column in range(grid.columns)]
    parts = [scaled.crop((left, top, left + SIZE, top + SIZE)) for left, top in places]
    return float_tiles([resize(picture, (SIZE, SIZE)), *parts])


def opencv_frames(path: Path, indices: Sequence[int]) -> Iterator[Image.Image]:
    """The frames of these numbers. It reads and converts every frame up to the last of them."""
    capture = cv2.VideoCapture(str(path))
    wanted = set(indices)
    for number in range(indices[-1] + 1):
        is_read, pixels = capture.read()
        if not is_read:
            raise RuntimeError(f"OpenCV reads {number} frames of {path}")
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if number in wanted:
            yield Image.fromarray(pixels)


def clip_tiles(path: Path) -> Tensor:
    """One frame per second of a video file, float32 [n, 3, S, S]."""
    capture = cv2.VideoCapture(str(path))
    count, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    return float_tiles(list(opencv_frames(path, frame_indices(count, fps, 1.0, 63))))


class NaiveDataset(Dataset):
    """Training sequences, each with the tiles of its packed files."""

    def __init__(self, files: Sequence[Sequence[Path]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        """Tiles, float32 [n, 3, S, S]."""
        read = {".jpg": picture_tiles, ".mp4": clip_tiles}
        return torch.cat([read[path.suffix](path) for path in self.files[number]])


def naive_loader(files: Sequence[Sequence[Path]], workers: int) -> Iterator[Any]:
    """The tiles of each sequence, [1, n, 3, S, S], from a DataLoader with torch's own collate function."""
    return iter(DataLoader(NaiveDataset(files), batch_size=1, num_workers=workers))
