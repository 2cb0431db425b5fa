"""Attention over a split sequence: what core attention calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from longvita.inference.kv_cache import KVCache
from longvita.parallel.context_parallel.cached import cached_attention, replicated_attention
from longvita.parallel.context_parallel.kernel import AttentionKernel
from longvita.parallel.context_parallel.plan import plan_ring
from longvita.parallel.context_parallel.ring import ring_attention
from longvita.parallel.context_parallel.ulysses import ulysses_attention
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.placement import rows_in_turn
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(frozen=True)
class SplitAttention:
    """Causal attention inside each document of a sequence that is split over the context-parallel group.

    The group is a ring of smaller groups: within each, Ulysses trades rows for heads, and the ring runs over the rows
    that a small group holds together. Small groups of one are the ring alone, one group of all is Ulysses alone.
    """

    layout: SequenceLayout
    """Over all ranks of the group."""
    ring_layout: SequenceLayout
    """Over the small groups; `layout` is this, sliced."""
    groups: ParallelGroups

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: AttentionKernel) -> Tensor:
        """Rows of this rank: q [t, heads, d], k and v [t, groups, d] to [t, heads, d]. A collective over the group."""
        ring = self.groups.cp_ring
        plan = plan_ring(self.ring_layout, ring.rank())

        def attend(q_all: Tensor, k_all: Tensor, v_all: Tensor) -> Tensor:
            return ring_attention(q_all, k_all, v_all, plan, scale, kernel, ring)

        return ulysses_attention(q, k, v, attend, self.groups.cp_ulysses)

    def with_cache(
        self, cache: KVCache, layer_number: int, q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: AttentionKernel
    ) -> Tensor:
        """The same for a chunk in generation, whose keys and values are added to the cache of this rank.

        It is the same at any division into small groups: see longvita.parallel.context_parallel.cached.
        """
        rank = self.groups.cp_rank
        used = self.layout.used[rank]
        past = cache.past(layer_number) if cache.length else None
        cache.append(layer_number, k[:used], v[:used])
        return cached_attention(q, k, v, past, self.layout, scale, kernel, self.groups.cp)


@dataclass(frozen=True)
class ReplicatedAttention:
    """Attention of a few new tokens, which every rank of the group has, over a cache that is spread over them."""

    group: dist.ProcessGroup

    def with_cache(
        self, cache: KVCache, layer_number: int, q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: AttentionKernel
    ) -> Tensor:
        """All new tokens' q [t, heads, d], k and v [t, groups, d] to q's shape; this rank caches some of the tokens.

        A collective over the group; every rank gets the same result, bit for bit.
        """
        own = list(rows_in_turn(len(k), cache.length, self.group.size(), self.group.rank()))
        past = cache.past(layer_number) if cache.length else None
        cache.append(layer_number, k[own], v[own])
        out, lse = replicated_attention(q, k, v, past, scale, kernel, self.group)
        if cache.watch is not None and past is not None:
            cache.watch.observe(q, past, lse, scale)
        return out


@dataclass
class SplitSeqParams(PackedSeqParams):
    """Packed-sequence parameters of this rank's rows of a split sequence, or of a few rows that every rank has.

    `cu_seqlens_q` and `cu_seqlens_kv` are [0, t]: for everything but attention the rows are one run.
    """

    split: SplitAttention | ReplicatedAttention | None = None
    kv_cache: KVCache | None = None
    """Generation only: keys and values of the tokens before this chunk that this rank holds."""


@dataclass
class LibrarySeqParams(PackedSeqParams):
    """The same for attention of a library that does context parallelism itself, which takes `attention` alone."""

    attention: PackedSeqParams | None = None
    """Document bounds of the whole sequence, over all ranks."""


def one_run(rows: Tensor) -> dict[str, Any]:
    """Fields of PackedSeqParams that say: these rows [t] are one document."""
    bounds = torch.tensor([0, len(rows)], dtype=torch.int32, device=rows.device)
    return {
        "qkv_format": "thd",
        "cu_seqlens_q": bounds,
        "cu_seqlens_kv": bounds,
        "max_seqlen_q": len(rows),
        "max_seqlen_kv": len(rows),
    }


def padded_seq_params(rows: Tensor, layout: SequenceLayout, real_lengths: bool = True) -> LibrarySeqParams:
    """Parameters for this rank's rows [t] of a sequence that lies `zigzag`, padding and all, over the ranks.

    `attention` has the documents' real and padded bounds over all ranks; documents without a token are left out.
    real_lengths False gives the padded bounds for both, for kernels that take no padding between documents: attention
    is causal, so no token sees the padding behind it.
    """
    ends = {piece.document: piece.end for piece in layout.pieces}
    real = torch.tensor([0, *(layout.lengths[document] for document in ends)]).cumsum(0)
    padded = torch.tensor([0, *ends.values()]).cumsum(0)
    real, padded = (bounds.to(device=rows.device, dtype=torch.int32) for bounds in (real, padded))
    if not real_lengths:
        real = padded
    longest = max(ends.values())
    attention = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=real,
        cu_seqlens_kv=real,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    return LibrarySeqParams(**one_run(rows), attention=attention)
