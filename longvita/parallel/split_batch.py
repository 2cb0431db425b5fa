"""A micro batch as one context-parallel rank sees it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.placement import compact
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(frozen=True)
class SplitBatch:
    """The rows of a micro batch that this process's context-parallel rank holds."""

    layout: SequenceLayout
    tokens: Tensor
    """[t] int64, place in the whole micro batch of each row's token; -1 for padding."""

    def take(self, values: Tensor, padding: int) -> Tensor:
        """[t]: values [whole micro batch] of this rank's rows, `padding` where a row holds no token."""
        return torch.where(self.tokens >= 0, values[self.tokens.clamp(min=0)], padding)

    def labels(self, batch: LocalBatch) -> Tensor:
        """[t] int64, the target of each row."""
        return self.take(batch.labels[0], IGNORED_LABEL)


def split_batch(batch: LocalBatch, groups: ParallelGroups, sequence_parallel: bool) -> SplitBatch:
    """The share of this rank of a micro batch, which every rank of the replica holds whole but for the tiles."""
    tp_size = groups.tp_size if sequence_parallel else 1
    layout = _layout(tuple(batch.cu_seqlens.diff().tolist()), groups.cp_size, tp_size)
    return SplitBatch(layout, layout.tokens(groups.cp_rank).to(batch.input_ids.device))


def schedule_length(tokens: int, groups: ParallelGroups, sequence_parallel: bool) -> int:
    """Tokens of a micro batch with its padding, as Megatron's schedules count them: all CP ranks' rows."""
    unit = groups.cp_size * (groups.tp_size if sequence_parallel else 1)
    return -(-tokens // unit) * unit


@functools.lru_cache(maxsize=16)
def _layout(lengths: tuple[int, ...], cp_size: int, tp_size: int) -> SequenceLayout:
    return compact(lengths, cp_size, tp_size)
