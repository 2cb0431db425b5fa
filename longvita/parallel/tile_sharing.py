"""Which rank encodes which tile. Each tile is decoded and encoded once, by one rank of the replica's TP x CP group."""

from __future__ import annotations

import torch
from torch import Tensor


def assign_tiles(num_tiles: int, ranks: int) -> Tensor:
    """Return the rank that encodes each tile: [num_tiles] int64, contiguous runs whose lengths differ by at most one.

    A pure function of the counts, so every rank knows the assignment without communication. With contiguous runs a rank
    decodes a video in one pass, and most feature rows stay near the rank that needs them.
    """
    return (torch.arange(num_tiles) * ranks).div(max(num_tiles, 1), rounding_mode="floor")
