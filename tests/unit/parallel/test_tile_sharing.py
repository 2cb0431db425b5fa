"""Tiles are assigned evenly to the ranks of a replica."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from longvita.parallel.tile_sharing import assign_tiles


@given(tiles=st.integers(0, 300), ranks=st.integers(1, 16))
def test_tiles_are_contiguous_and_balanced(tiles: int, ranks: int) -> None:
    owners = assign_tiles(tiles, ranks)
    counts = torch.bincount(owners, minlength=ranks)
    assert len(owners) == tiles
    assert torch.equal(owners, owners.sort().values)
    assert counts.max() - counts.min() <= 1
