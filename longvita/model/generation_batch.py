"""The input of one forward pass in generation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longvita.attention.seq_params import CachedSeqParams


@dataclass(frozen=True)
class GenerationBatch:
    """A chunk of one sequence, behind the tokens that the KV cache holds. Only `tiles` differ between ranks."""

    input_ids: Tensor
    """[1, t] int64, with padding at the end."""
    last: int
    """Position in the chunk of its last token that is not padding."""
    tile_starts: Tensor
    """[n] int64, position in the chunk of the first token of each of its tiles, ascending."""
    tile_owners: Tensor
    """[n] int64, rank in the replica's TP x CP group that encodes each tile."""
    tiles: Tensor
    """[n_local, 3, H, W] float32, this rank's tiles in order; empty on later pipeline stages."""
    seq_params: CachedSeqParams
    """KV cache, and how the chunk is split over the CP ranks; for core attention."""
