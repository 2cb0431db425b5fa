"""What the data loader hands to the model: one micro batch as packed tokens and this rank's tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from longvita.data.chat_template import IGNORED_LABEL

__all__ = ["IGNORED_LABEL", "LocalBatch"]


@dataclasses.dataclass
class LocalBatch:
    """One micro batch, packed: micro_batch_size sequences joined into t tokens, documents back to back.

    Tokens, labels and document bounds are the same on every rank of a model replica; only `tiles` differs.
    """

    input_ids: Tensor
    """[1, t] int64, the whole micro batch (every TP rank holds all ids)."""
    labels: Tensor
    """[1, t] int64, shifted: labels[0, i] is the target of position i; -100 where no loss is taken."""
    position_ids: Tensor
    """[1, t] int64, starting anew at each document of cu_seqlens."""
    cu_seqlens: Tensor
    """[d + 1] int32, document bounds, from 0 to t; padding is a last document."""
    max_seqlen: int
    """Longest document, tokens."""
    tile_starts: Tensor
    """[n] int64, position of the first token of each tile of the whole micro batch, ascending."""
    tile_owners: Tensor
    """[n] int64, rank in the replica's TP x CP group that encodes each tile."""
    tiles: Tensor
    """[n_local, 3, H, W] float32, this rank's tiles in order; empty on later pipeline stages."""
    document_sources: list[str]
    """Source name of each document of cu_seqlens, "" for padding."""
    padding_tokens: int
    """Positions that hold no sample."""

    def to(self, device: torch.device | str) -> LocalBatch:
        """The same batch with its tensors on `device`; the original is left as it is."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)
