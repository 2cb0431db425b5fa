"""Packed-sequence parameters: what core attention receives for whole, split and cached sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from longvita.attention.kv_cache import KVCache
from longvita.parallel.sequence_layout import SequenceLayout

if TYPE_CHECKING:
    from longvita.attention.split import ReplicatedAttention, SplitAttention


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


@dataclass
class CachedSeqParams(PackedSeqParams):
    """Packed-sequence parameters of one chunk of one sequence whose earlier tokens are in `kv_cache`.

    `cu_seqlens_q` and `cu_seqlens_kv` are [0, t]: the chunk alone. Core attention appends the chunk's keys and values
    to the cache and attends from query i to the keys up to `kv_cache.length + i`.
    """

    kv_cache: KVCache | None = None
