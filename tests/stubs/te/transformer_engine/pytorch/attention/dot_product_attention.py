"""transformer_engine/pytorch/attention/dot_product_attention: dot_product_attention.py, context_parallel.py

Context parallelism as documented for attn_forward_func_with_cp: each sequence of a packed batch, padding included, is
cut into 2 x CP chunks by cu_seqlens_*_padded, and rank r has chunks r and 2 CP - 1 - r of each. This stub gathers the
rows of all ranks in order, computes attention of the full sequences, and returns the rank's own rows. The methods of
communication differ only in the arguments that they refuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...refuse import only
from ..module.base import TransformerEngineBaseModule
from ..module.collectives import gathered

MASKS = ("no_mask", "padding", "causal", "padding_causal")


class DotProductAttention(TransformerEngineBaseModule):
    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        bottom_right_diagonal: bool | None = None,
        softcap: float = 0.0,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Any = None,
        cp_global_ranks: list[int] | None = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
        return_max_logit: bool | None = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        only(
            "DotProductAttention",
            attention_dropout=attention_dropout,
            window_size=window_size,
            bottom_right_diagonal=bottom_right_diagonal,
            softcap=softcap,
            cross=attention_type != "self",
            softmax_type=softmax_type != "vanilla",
            return_max_logit=return_max_logit,
        )
        self.qkv_format, self.attn_mask_type = qkv_format, attn_mask_type
        self.head_dim = kv_channels
        self.local_heads = num_attention_heads // tp_size
        self.local_groups = (num_gqa_groups or num_attention_heads) // tp_size
        self.softmax_scale = softmax_scale or kv_channels**-0.5  # type: ignore[operator]
        self.set_context_parallel_group(cp_group, cp_global_ranks, cp_stream, cp_comm_type)

    def set_context_parallel_group(
        self,
        cp_group: Any,
        cp_global_ranks: list[int] | None,
        cp_stream: Any,
        cp_comm_type: str = "p2p",
        load_balancing_strategy: Any = None,
    ) -> None:
        only("set_context_parallel_group", load_balancing_strategy=load_balancing_strategy)
        self.cp_group, self.cp_global_ranks = cp_group, cp_global_ranks
        self.cp_stream, self.cp_comm_type = cp_stream, cp_comm_type

    def forward(
        self,
        query_layer: Tensor | None = None,
        key_layer: Tensor | None = None,
        value_layer: Tensor | None = None,
        attention_mask: Any = None,
        qkv_format: str | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        bottom_right_diagonal: bool | None = None,
        softcap: float | None = None,
        checkpoint_core_attention: bool = False,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        fast_zero_fill: bool = True,
        inference_params: Any = None,
        pad_between_seqs: bool | None = None,
        fp8_output: bool | None = False,
        bf16_backward: bool | None = False,
        num_splits: int | None = 1,
        score_mod: Callable | None = None,
        score_mod_bprop: Callable | None = None,
        score_mod_tensors: Any = None,
        score_mod_bprop_tensors: Any = None,
        qkv_layer: Tensor | None = None,
        kv_layer: Tensor | None = None,
        qkv_interleave_dim: int = -3,
        thd_attention_policies: Any = None,
        thd_attention_policy_dispatch: str = "auto",
    ) -> Tensor:
        given = {name: value for name, value in locals().items() if name in NOT_COMPUTED}
        only("DotProductAttention.forward", **given, bias=core_attention_bias_type != "no_bias")
        q, k, v = query_layer, key_layer, value_layer
        assert q is not None and k is not None and v is not None
        mask = attn_mask_type or self.attn_mask_type
        assert mask in MASKS, f"Attention mask type {mask} is not supported!"
        assert q.dtype == k.dtype == v.dtype, "Queries, keys and values must have the same data type!"
        assert q.shape[-1] == self.head_dim and k.shape[-2] == self.local_groups and q.shape[-2] == self.local_heads
        if (qkv_format or self.qkv_format) != "thd":
            assert self.cp_group is None, "the stub computes context parallelism of packed batches alone"
            out = torch.stack([attend(*x, mask == "causal", self.softmax_scale) for x in zip(*map(_b, (q, k, v)))], 1)
            return out.flatten(2)
        assert "padding" in mask, "Attention mask type must be padding or padding_causal for qkv_format=thd!"
        assert all(bounds is not None and bounds.dtype == torch.int32 for bounds in (cu_seqlens_q, cu_seqlens_kv))
        if self.cp_group is not None:
            assert cu_seqlens_q_padded is not None and cu_seqlens_kv_padded is not None, "cu_seqlens_padded"
            assert torch.equal(cu_seqlens_q_padded, cu_seqlens_kv_padded)
        real = cu_seqlens_q.tolist()  # type: ignore[union-attr]
        padded = real if cu_seqlens_q_padded is None else cu_seqlens_q_padded.tolist()
        assert max(b - a for a, b in itertools.pairwise(padded)) <= max_seqlen_q  # type: ignore[operator]
        if self.cp_group is None:
            return attend_packed(q, k, v, real, padded, "causal" in mask, self.softmax_scale).flatten(1)
        return self._attend_split((q, k, v), real, padded, "causal" in mask).flatten(1)

    def _attend_split(self, parts: tuple[Tensor, ...], real: list[int], padded: list[int], causal: bool) -> Tensor:
        groups = self.cp_group if self.cp_comm_type == "a2a+p2p" else [self.cp_group]
        assert all(isinstance(group, dist.ProcessGroup) for group in groups), "cp_group"
        assert (len(groups) == 2) == (self.cp_comm_type == "a2a+p2p"), "a2a+p2p requires [a2a group, p2p group]"
        if "a2a" in self.cp_comm_type:
            for x in parts:
                assert x.shape[-2] % groups[0].size() == 0, "cp_comm_type='a2a' requires num_heads % cp_size == 0"
        else:
            assert self.cp_comm_type in ("p2p", "all_gather"), self.cp_comm_type
        size = groups[0].size() * (groups[1].size() if len(groups) == 2 else 1)
        rank = groups[0].rank() + (groups[0].size() * groups[1].rank() if len(groups) == 2 else 0)
        assert self.cp_global_ranks is not None and len(self.cp_global_ranks) == size
        assert self.cp_global_ranks[rank] == dist.get_rank()
        assert len(parts[0]) * size == padded[-1], f"{len(parts[0])} rows on each of {size} ranks, bounds {padded}"
        order = torch.cat([rows_of_rank(padded, size, other) for other in range(size)])
        full = []
        for x in parts:
            for group in groups:
                x = gathered(x, group)
            full.append(torch.empty_like(x).index_copy(0, order, x))
        out = attend_packed(*full, real, padded, causal, self.softmax_scale)
        return out[rows_of_rank(padded, size, rank)]


NOT_COMPUTED = (
    "attention_mask",
    "window_size",
    "bottom_right_diagonal",
    "softcap",
    "checkpoint_core_attention",
    "core_attention_bias",
    "alibi_slopes",
    "inference_params",
    "pad_between_seqs",
    "fp8_output",
    "bf16_backward",
    "score_mod",
    "qkv_layer",
    "kv_layer",
    "thd_attention_policies",
)


def _b(x: Tensor) -> tuple[Tensor, ...]:
    """[s, b, heads, d] by the columns of the batch."""
    return x.unbind(1)


def rows_of_rank(padded: list[int], size: int, rank: int) -> Tensor:
    """Places in the full packed batch of a rank's rows, in the rank's order."""
    places = []
    for start, end in itertools.pairwise(padded):
        assert (end - start) % (2 * size) == 0, f"a sequence of {end - start} does not divide in 2 x {size} chunks"
        chunk = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            places.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
    return torch.cat(places)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, real: list[int], padded: list[int], causal: bool, scale: float
) -> Tensor:
    """Attention inside each sequence; rows of padding are zero."""
    assert len(real) == len(padded) and padded[-1] <= len(q)
    parts, at = [], 0
    for (start, end), first in zip(itertools.pairwise(real), padded, strict=False):
        rows = slice(first, first + end - start)
        parts += [q[at:first] * 0, attend(q[rows], k[rows], v[rows], causal, scale)]
        at = first + end - start
    return torch.cat([*parts, q[at:] * 0])


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """[s, heads, d] queries over [s, groups, d] keys and values, by matrix products."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
