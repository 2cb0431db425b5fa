"""The rows of a micro batch that one context-parallel rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(frozen=True)
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
