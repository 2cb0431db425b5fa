"""Frames and .mp4 files of the quickstart: digits, checkerboard markers and noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from tools.quickstart.digits import SIDE


def draw_marker(rng: np.random.Generator) -> np.ndarray:
    """A checkerboard of 7-pixel squares with a random first colour, [56, 56, 3] uint8."""
    cells = np.indices((8, 8)).sum(axis=0) + rng.integers(2)
    return _blow_up((cells % 2 * 255).astype(np.uint8))


def draw_noise(rng: np.random.Generator) -> np.ndarray:
    """A frame of random grey squares of 7 pixels, [56, 56, 3] uint8."""
    return _blow_up(rng.integers(0, 256, (8, 8), dtype=np.uint8))


def _blow_up(cells: np.ndarray) -> np.ndarray:
    factor = SIDE // cells.shape[0]
    grey = cells.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.repeat(grey[..., None], 3, axis=-1)


def write_mp4(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames [56, 56, 3] uint8 as an H.264 .mp4 of one frame per second.

    Every frame is a key frame: consecutive frames are unrelated, and decoding can start at any frame.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20", "g": "1"}
        stream.thread_count = 1
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
