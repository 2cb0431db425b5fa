"""A micro batch as one context-parallel rank sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.document_placement import chunk_layout
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(frozen=True)
class SplitBatch:
    """The rows of a micro batch that this process's context-parallel rank holds."""

    layout: SequenceLayout
    """Over all context-parallel ranks."""
    ring_layout: SequenceLayout
    """Over the groups of them in which Ulysses trades rows for heads."""
    tokens: Tensor
    """[t] int64, place in the whole micro batch of each row's token; -1 for padding."""

    def take(self, values: Tensor, padding: int) -> Tensor:
        """[t]: values [whole micro batch] of this rank's rows, `padding` where a row holds no token."""
        return torch.where(self.tokens >= 0, values[self.tokens.clamp(min=0)], padding)

    def labels(self, batch: LocalBatch) -> Tensor:
        """[t] int64, the target of each row."""
        return self.take(batch.labels[0], IGNORED_LABEL)


def split_batch(batch: LocalBatch, groups: ParallelGroups, platform: Any, sequence_parallel: bool) -> SplitBatch:
    """The share of this rank of a micro batch, which every rank of the replica holds whole but for the tiles.

    The platform says where documents lie; in generation they lie as our own attention over the KV cache takes them.
    """
    tp_size = groups.tp_size if sequence_parallel else 1
    if batch.kv_cache is None:
        lengths = tuple(batch.cu_seqlens.diff().tolist())
        ring_layout, layout = platform.sequence_layout(
            lengths, groups.cp_ring.size(), groups.cp_ulysses.size(), tp_size
        )
    else:
        layout = ring_layout = chunk_layout(batch.input_ids.shape[1], groups.cp_size, tp_size)
    return SplitBatch(layout, ring_layout, layout.tokens(groups.cp_rank).to(batch.input_ids.device))
