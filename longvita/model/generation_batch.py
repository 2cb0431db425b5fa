"""The input of one forward pass in generation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longvita.attention.kv_cache import KVCache
from longvita.parallel.sequence_layout import SequenceLayout


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
    kv_cache: KVCache
    layout: SequenceLayout | None
    """Of the chunk over the CP ranks; None where every rank computes all rows: one CP rank, or few tokens."""
