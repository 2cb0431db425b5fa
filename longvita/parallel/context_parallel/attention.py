"""Attention over a split sequence by the method that fits: what core attention calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from longvita.parallel.context_parallel.kernel import AttentionKernel
from longvita.parallel.context_parallel.plan import plan_ring
from longvita.parallel.context_parallel.ring import ring_attention
from longvita.parallel.context_parallel.ulysses import Attend, ulysses_attention
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(frozen=True)
class SplitAttention:
    """Causal attention inside each document of a sequence that is split over the context-parallel group."""

    layout: SequenceLayout
    group: dist.ProcessGroup
    method: str
    """layout.context_parallel_method of the config: ring or ulysses."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: AttentionKernel, attend: Attend
    ) -> Tensor:
        """Rows of this rank: q [t, heads, d], k and v [t, groups, d] to [t, heads, d]. A collective over the group.

        kernel, attend: attention within one process, for the ring and for Ulysses.
        """
        if self.method == "ulysses":
            return ulysses_attention(q, k, v, self.layout, scale, attend, self.group)
        return ring_attention(q, k, v, plan_ring(self.layout, self.group.rank()), scale, kernel, self.group)


@dataclass
class SplitSeqParams(PackedSeqParams):
    """Packed-sequence parameters of this rank's rows of a split sequence.

    `cu_seqlens_q` and `cu_seqlens_kv` are [0, t]: for everything but attention the rows are one run.
    """

    split: SplitAttention | None = None
