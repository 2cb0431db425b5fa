"""A prompt as the model's input: token ids, the positions of its tiles, and the tiles, decoded on request."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class TileSource(Protocol):
    """The tiles of a prompt, decoded on request."""

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return tiles [len(indices), 3, H, W] float32, by their index in the prompt, ascending."""
        ...


class TensorTiles:
    """Tiles in memory: `tiles` [n, 3, H, W]."""

    def __init__(self, tiles: Tensor):
        self._tiles = tiles

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return the tiles at `indices` as float32."""
        return self._tiles[torch.as_tensor(list(indices), dtype=torch.int64)].float()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The whole input of one answer."""

    input_ids: Sequence[int]
    """Token ids."""
    tile_starts: Sequence[int]
    """Position of the first token of each tile, ascending."""
    tiles: TileSource
    tile_keys: Sequence[Hashable]
    """Content of each tile: tiles with equal keys have equal features."""

    def __len__(self) -> int:
        return len(self.input_ids)


def token_array(ids: np.ndarray) -> array[int]:
    """Convert token ids [t] to an array. A list takes several times the memory, and a long prompt has a million ids."""
    return array("i", ids.astype(np.int32).tobytes())


def common_prefix(old: Prompt, new: Prompt, tokens_per_tile: int, limit: int) -> int:
    """Count the leading tokens, at most `limit`, that `old` and `new` have in common, with equal keys and values.

    All pictures have the same token ids, so a tile is common only with equal key and position. The prefix never ends
    inside a tile.
    """
    length = min(_equal_length(old.input_ids, new.input_ids), limit)
    old_tiles, new_tiles = (list(zip(one.tile_starts, one.tile_keys, strict=True)) for one in (old, new))
    same = _equal_length(old_tiles, new_tiles)
    for start in [*new.tile_starts[same : same + 1], *old.tile_starts[same : same + 1]]:
        length = min(length, start)
    for start in new.tile_starts[:same]:
        if start < length < start + tokens_per_tile:
            length = start
    return length


def _equal_length(first: Sequence, second: Sequence) -> int:
    different = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


def plan_chunks(
    start: int, end: int, tile_starts: Sequence[int], tokens_per_tile: int, chunk_size: int
) -> list[tuple[int, int]]:
    """Return the bounds (start, end) of the prefill chunks that cover positions [start, end).

    A chunk has `chunk_size` tokens, fewer where its end would cut a tile, and more only where one tile is larger than a
    chunk: every tile is encoded once, by the chunk that holds all its rows.
    """
    if chunk_size < 1:
        raise ValueError(f"prefill_chunk_size is {chunk_size}, but must be at least 1")
    chunks = []
    while start < end:
        stop = min(start + chunk_size, end)
        for tile in tile_starts:
            if tile < stop < tile + tokens_per_tile:
                stop = tile if tile > start else tile + tokens_per_tile
                break
        chunks.append((start, stop))
        start = stop
    return chunks
