"""Scikit-learn's scanned handwritten digits: the fixed held-out split and their drawing as 56-pixel pictures.

The 1,797 scans are 8 x 8 pixels with values 0 to 16 (UCI's "Optical Recognition of Handwritten Digits").
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 56
"""Side of a drawn picture, pixels: one tile of the quickstart's vision tower."""
HELD_OUT = 359
"""Number of scans that are never trained on."""
SPLIT_SEED = 20250207
"""Seed of the split. It is a constant, so that no run trains on a held-out scan."""

MAX_ROTATION = 12.0
"""Maximum rotation of a picture drawn with strength 1, degrees."""
MAX_SCALE = 0.12
"""Maximum relative change of size of a picture drawn with strength 1."""
MAX_SHIFT = 0.12
"""Maximum shift of a picture drawn with strength 1, as a fraction of its side."""
STRENGTH = {"train": 1.0, "held_out": 1 / 3}
"""Strength of the rotation, scaling and shift of the pictures of each split."""


@dataclass(frozen=True)
class Digits:
    """Scans with their labels, split into training and held-out scans."""

    scans: np.ndarray
    """Grey values 0 to 255, [1797, 8, 8] uint8."""
    labels: np.ndarray
    """The digit of each scan, [1797] int64."""
    train: np.ndarray
    """Indices for training, [1438] int64."""
    held_out: np.ndarray
    """Indices held out, [359] int64."""

    def part(self, split: str) -> np.ndarray:
        """The indices of "train" or "held_out". Raises ValueError for another split."""
        parts = {"train": self.train, "held_out": self.held_out}
        if split not in parts:
            raise ValueError(f"split={split!r}: use 'train' or 'held_out'")
        return parts[split]


@functools.cache
def load() -> Digits:
    """All scans. They are part of scikit-learn, so nothing is downloaded."""
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source.target))
    return Digits(
        scans=np.round(source.images * (255 / 16)).astype(np.uint8),
        labels=source.target.astype(np.int64),
        train=np.sort(order[HELD_OUT:]),
        held_out=np.sort(order[:HELD_OUT]),
    )


def draw(scan: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A scan [8, 8] as an RGB picture [56, 56, 3] uint8, randomly rotated, scaled and shifted by up to `strength`."""
    turn, resize, right, down = rng.uniform(-strength, strength, 4)
    angle, scale = math.radians(MAX_ROTATION * turn), 1 + MAX_SCALE * resize
    shift_x, shift_y = MAX_SHIFT * right * SIDE, MAX_SHIFT * down * SIDE
    margin = 2
    padded = Image.fromarray(np.pad(scan, margin))
    # The affine map takes a point of the drawing to its point in the padded scan.
    centre, step = SIDE / 2, scan.shape[0] / SIDE / scale
    cos, sin = math.cos(angle) * step, math.sin(angle) * step
    start_x = scan.shape[1] / 2 + margin - cos * (centre + shift_x) - sin * (centre + shift_y)
    start_y = scan.shape[0] / 2 + margin + sin * (centre + shift_x) - cos * (centre + shift_y)
    grey = padded.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, (cos, sin, start_x, -sin, cos, start_y), Image.Resampling.BICUBIC
    )
    return np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
