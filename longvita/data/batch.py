"""One micro batch for the model: packed tokens and this rank's tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from longvita.data.chat_template import IGNORED_LABEL
from longvita.parallel.sequence_layout import SequenceLayout


@dataclasses.dataclass
class LocalBatch:
    """One micro batch, packed: micro_batch_size sequences joined into t tokens, documents back to back.

    Tokens, labels and document bounds are replicated on every rank of a model replica; only `tiles` differs.
    """

    input_ids: Tensor
    """[1, t] int64, all tokens of the micro batch, on every rank."""
    labels: Tensor
    """[1, t] int64, shifted: labels[0, i] is the target of position i; -100 at positions without loss."""
    position_ids: Tensor
    """[1, t] int64, from 0 in each document of cu_seqlens."""
    cu_seqlens: Tensor
    """[d + 1] int32, document bounds, from 0 to t; padding is a last document."""
    max_seqlen: int
    """Longest document, tokens."""
    tile_starts: Tensor
    """[n] int64, position of the first token of each tile of the micro batch, ascending."""
    tile_owners: Tensor
    """[n] int64, rank in the replica's TP x CP group that encodes each tile."""
    tiles: Tensor
    """[n_local, 3, H, W] float32, this rank's tiles in order; empty on later pipeline stages."""
    document_sources: list[str]
    """Source name of each document of cu_seqlens, "" for padding."""
    padding_tokens: int
    """Positions that hold no sample."""

    def to(self, device: torch.device | str) -> LocalBatch:
        """Return a copy of the batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass(frozen=True)
class CPShard:
    """The rows of a micro batch that this process's context-parallel rank holds."""

    layout: SequenceLayout
    """Over all context-parallel ranks."""
    ring_layout: SequenceLayout
    """Over the groups of ranks in which Ulysses exchanges rows for heads."""
    tokens: Tensor
    """[t] int64, position in the micro batch of each row's token; -1 for padding."""

    def take(self, values: Tensor, padding: int) -> Tensor:
        """Select this rank's rows [t] of `values` [tokens of the micro batch]; `padding` where a row has no token."""
        return torch.where(self.tokens >= 0, values[self.tokens.clamp(min=0)], padding)

    def labels(self, batch: LocalBatch) -> Tensor:
        """Return the target of each row, [t] int64."""
        return self.take(batch.labels[0], IGNORED_LABEL)
