"""Attention over a split sequence: what core attention calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from longvita.attention.cached import cached_attention, replicated_attention
from longvita.attention.kernel import AttentionKernel
from longvita.attention.kv_cache import KVCache
from longvita.attention.ring import ring_attention
from longvita.attention.ring_plan import plan_ring
from longvita.attention.ulysses import ulysses_attention
from longvita.parallel.document_placement import rows_in_turn
from longvita.parallel.groups import ParallelGroups
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

        It is the same at any division into small groups: see longvita.attention.cached.
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
