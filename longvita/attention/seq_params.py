"""Packed-sequence parameters, one type for each way of attending.

Core attention dispatches on the type (longvita.attention.core): Megatron's own PackedSeqParams for whole documents on
this rank, SplitSeqParams and LibrarySeqParams for training with context parallelism (CP), CachedSeqParams and its
subclasses for generation. In all of ours `cu_seqlens_q` and `cu_seqlens_kv` are [0, t]: everything except attention
treats this rank's rows as one document.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams

from longvita.attention.kv_cache import KVCache
from longvita.attention.ring import RingPlan, plan_ring
from longvita.data.batch import CPShard
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import SequenceLayout


@dataclass(kw_only=True)
class SplitSeqParams(PackedSeqParams):
    """Training: rows of this rank, of documents that our own attention splits over the CP group."""

    plan: RingPlan
    """Of this rank's place in the ring."""
    ring: dist.ProcessGroup
    ulysses: dist.ProcessGroup


@dataclass(kw_only=True)
class LibrarySeqParams(PackedSeqParams):
    """Training: rows of this rank, of documents that a library's attention splits over the CP group."""

    attention: PackedSeqParams
    """What the library receives: document bounds of the whole sequence, over all ranks."""


@dataclass(kw_only=True)
class CachedSeqParams(PackedSeqParams):
    """Generation: a chunk of one sequence whose earlier tokens are in `kv_cache`, all on this rank.

    Core attention appends the chunk's keys and values to the cache. Query i attends to the keys of positions up to
    `kv_cache.length + i`.
    """

    kv_cache: KVCache


@dataclass(kw_only=True)
class SplitChunkSeqParams(CachedSeqParams):
    """Generation: rows of this rank, of a chunk that is split over the CP group, as is the cache."""

    layout: SequenceLayout
    """Of the chunk, over all ranks."""
    plan: RingPlan
    group: dist.ProcessGroup


@dataclass(kw_only=True)
class ReplicatedSeqParams(CachedSeqParams):
    """Generation: a chunk of a few tokens that every CP rank has. The cache is split over the CP group."""

    group: dist.ProcessGroup


def split_seq_params(shard: CPShard, groups: ParallelGroups) -> SplitSeqParams:
    """Return the parameters of this rank's rows of a micro batch, for our own attention."""
    return SplitSeqParams(
        **one_document(len(shard.tokens), shard.tokens.device),
        plan=plan_ring(shard.ring_layout, groups.cp_ring.rank()),
        ring=groups.cp_ring,
        ulysses=groups.cp_ulysses,
    )


def library_seq_params(shard: CPShard, real_lengths: bool = True) -> LibrarySeqParams:
    """Return the parameters of this rank's rows of a micro batch in `zigzag` layout, for a library's attention.

    `attention` has the documents' real and padded bounds over all ranks. Documents without a token are left out. With
    real_lengths False both are the padded bounds, for kernels that accept no padding between documents: attention is
    causal, so no token attends to the padding behind it.
    """
    layout, device = shard.layout, shard.tokens.device
    ends = {piece.document: piece.end for piece in layout.pieces}
    real = torch.tensor([0, *(layout.lengths[document] for document in ends)]).cumsum(0)
    padded = torch.tensor([0, *ends.values()]).cumsum(0)
    real, padded = (bounds.to(device=device, dtype=torch.int32) for bounds in (real, padded))
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
    return LibrarySeqParams(**one_document(len(shard.tokens), shard.tokens.device), attention=attention)


@functools.lru_cache(maxsize=16)
def one_document(rows: int, device: torch.device) -> Mapping[str, Any]:
    """Return the fields of PackedSeqParams that declare this rank's rows to be one document."""
    with torch.inference_mode(False):  # a training step saves the bounds for its backward pass
        bounds = torch.tensor([0, rows], dtype=torch.int32, device=device)
    return MappingProxyType(
        {
            "qkv_format": "thd",
            **dict.fromkeys(("cu_seqlens_q", "cu_seqlens_kv"), bounds),
            **dict.fromkeys(("max_seqlen_q", "max_seqlen_kv"), rows),
        }
    )
