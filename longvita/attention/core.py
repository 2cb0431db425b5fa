"""Core attention on a kernel of ours: whole documents, sequences split over context parallelism (CP), KV caches.

`CoreAttention` is the core attention of platforms without a library for it. A platform with a library calls
`attend_split_or_cached` for what no library does here: sequences placed by our own sequence layout, and generation,
where keys and values stay in the cache of the rank that computed them. Partial results are merged exactly by their
logsumexps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.attention.kernel import AttentionKernel
from longvita.attention.kv_cache import cached_rows
from longvita.attention.ring import merge_into, ring_attention, ring_forward
from longvita.attention.seq_params import CachedSeqParams, ReplicatedSeqParams, SplitChunkSeqParams, SplitSeqParams
from longvita.attention.ulysses import ulysses_attention

CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class CoreAttention(MegatronModule):
    """softmax(q k^T * scale) v on `kernel`, with megatron-core's core attention interface.

    softmax_scale: 1/sqrt(head_dim) when None. `forward` does not read its attention_mask: packed_seq_params and
    attn_mask_type decide which keys a query attends to.
    """

    kernel: AttentionKernel

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size != 1:
            raise ValueError(f"context_parallel_size={config.context_parallel_size}: this attention needs it to be 1")
        if attention_dropout or (attention_dropout is None and config.attention_dropout):
            raise ValueError(f"attention_dropout={config.attention_dropout}: this attention needs it to be 0")
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale

    def attend_whole(self, q: Tensor, k: Tensor, v: Tensor, params: PackedSeqParams, scale: float) -> Tensor:
        """Attend causally inside whole documents, with the tensors of `attend_documents`."""
        bounds = params.cu_seqlens_q if params.cu_seqlens_q_padded is None else params.cu_seqlens_q_padded
        return self.attend_documents(q, k, v, checked(bounds.tolist(), len(q)), scale)

    def attend_documents(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
        """Attend causally inside each document: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

        bounds: first tokens of the documents, then t.
        """
        return _KernelAttention.apply(q, k, v, bounds, scale, self.kernel)

    def attend_batch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        """Attend inside each sequence of a batch: q [s, b, heads, d], k and v [s, b, groups, d] to [s, b, heads, d]."""
        q_first, k_first, v_first = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q_first, k_first, v_first, is_causal=causal, scale=scale, enable_gqa=q.shape[2] != k.shape[2]
        )
        return out.permute(2, 0, 1, 3)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Packed: q [t, heads, d], k and v [t, groups, d] to [t, 1, heads * d]; else q [s, b, heads, d] to [s, b, ..].

        Raises ValueError for an attention bias, or document bounds that do not end with the last token.
        """
        if attention_bias is not None:
            raise ValueError("attention_bias is not supported by this attention")
        scale = query.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale
        if packed_seq_params is None:
            causal = (attn_mask_type or self.attn_mask_type) in CAUSAL
            out = self.attend_batch(query, key, value, scale, causal)
            return out.reshape(out.shape[0], out.shape[1], -1)
        rows = attend_split_or_cached(packed_seq_params, self.layer_number, query, key, value, scale, self.kernel)
        if rows is None:
            rows = self.attend_whole(query, key, value, packed_seq_params, scale)
        return rows.reshape(rows.shape[0], 1, -1)


def attend_split_or_cached(
    params: PackedSeqParams,
    layer_number: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    kernel: AttentionKernel,
) -> Tensor | None:
    """Attend over a split sequence or a KV cache: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

    Returns None for whole documents, which each platform attends to by itself. A collective over the CP group, except
    for a cache on one rank. Generation appends the new keys and values to the cache.
    """
    match params:
        case SplitSeqParams():
            return _attend_split(params, query, key, value, scale, kernel)
        case SplitChunkSeqParams():
            return attend_split_chunk(params, layer_number, query, key, value, scale, kernel)
        case ReplicatedSeqParams():
            return _attend_replicated(params, layer_number, query, key, value, scale, kernel)
        case CachedSeqParams(kv_cache=cache):
            past = cache.past(layer_number)
            cache.append(layer_number, key, value)
            out, lse = attend_chunk(query, key, value, past, scale, kernel)
            if cache.observer is not None:
                cache.observer.observe(query, past, lse, scale)
            return out
    return None


def _attend_split(
    params: SplitSeqParams, q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: AttentionKernel
) -> Tensor:
    """Causal attention inside each document of a split sequence.

    The CP group is a ring of smaller groups: inside a small group, Ulysses exchanges rows for heads; the ring passes on
    the rows of whole small groups. With small groups of one rank this is the ring alone.
    """
    attend = functools.partial(ring_attention, plan=params.plan, scale=scale, kernel=kernel, group=params.ring)
    return attend(q, k, v) if params.ulysses.size() == 1 else ulysses_attention(q, k, v, attend, params.ulysses)


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, past: Sequence[tuple[Tensor, Tensor]], scale: float, kernel: AttentionKernel
) -> tuple[Tensor, Tensor]:
    """Attend from a chunk to the cached tokens and, causally, to itself: q [t, heads, d], k and v [t, groups, d].

    past: keys and values [n, groups, d] of the tokens before the chunk, in blocks. Returns [t, heads, d] and the
    logsumexps [t, heads]. Without gradients.
    """
    dtype = kernel.compute_dtype(q.dtype)
    queries = q.to(dtype)
    with torch.no_grad():
        out, lse = kernel.causal_forward(queries, k.to(dtype), v.to(dtype), [0, len(q)], scale)
        if past:
            merge_into(out, lse, *_attend_blocks(queries, past, scale, kernel))
    return out.to(q.dtype), lse


@torch.no_grad()
def attend_split_chunk(
    params: SplitChunkSeqParams,
    layer_number: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    kernel: AttentionKernel,
) -> Tensor:
    """`attend_chunk` for a chunk split over the CP group. Rows of padding are zero.

    The chunk has few queries compared with the cached tokens, so queries travel: every rank receives all of them,
    attends with them to the keys and values that it has cached, and sends each partial result with its logsumexp to the
    rank of the query, which merges them (pass-Q of arXiv 2411.01783). Inside the chunk, keys and values travel around
    the ring, as in training.
    """
    cache, group, dtype = params.kv_cache, params.group, kernel.compute_dtype(q.dtype)
    used = params.layout.used[group.rank()]
    past = cache.past(layer_number)
    cache.append(layer_number, k[:used], v[:used])
    queries = q.to(dtype)
    out, lse = ring_forward(queries, k.to(dtype), v.to(dtype), params.plan, scale, kernel, group)
    if cache.length:
        size, width = group.size(), max(params.layout.used)
        everyone = queries.new_empty((size * width, *queries.shape[1:]))
        dist.all_gather_into_tensor(everyone, queries[:width].contiguous(), group=group)
        # Ranks with fewer rows have padding behind them. No result is computed for it.
        rows = torch.cat([torch.arange(count) + rank * width for rank, count in enumerate(params.layout.used)])
        rows = rows.to(q.device)
        results = torch.zeros((size * width, q.shape[1], q.shape[2] + 1), dtype=torch.float32, device=q.device)
        results[rows] = _with_lse(*_attend_blocks(everyone[rows], past, scale, kernel))
        received = torch.empty_like(results)
        dist.all_to_all_single(received, results, group=group)
        for part in received.unflatten(0, (size, width)):
            merge_into(out[:used], lse[:used], part[:used, :, :-1], part[:used, :, -1])
    return out.to(q.dtype)


@torch.no_grad()
def _attend_replicated(
    params: ReplicatedSeqParams,
    layer_number: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    kernel: AttentionKernel,
) -> Tensor:
    """`attend_chunk` for a few tokens whose queries, keys and values every rank has. This rank caches some of them.

    Ranks exchange results alone, once. The result is identical on every rank, bit for bit, because all ranks merge the
    same parts in the same order.
    """
    cache, group, dtype = params.kv_cache, params.group, kernel.compute_dtype(q.dtype)
    past = cache.past(layer_number)
    own = list(cached_rows(len(k), cache.length, group.size(), group.rank()))
    cache.append(layer_number, k[own], v[own])
    queries = q.to(dtype)
    out, lse = kernel.causal_forward(queries, k.to(dtype), v.to(dtype), [0, len(q)], scale)
    if cache.length:
        result = _with_lse(*_attend_blocks(queries, past, scale, kernel))
        everyone = result.new_empty((group.size() * len(q), *result.shape[1:]))
        dist.all_gather_into_tensor(everyone, result, group=group)
        for part in everyone.unflatten(0, (group.size(), -1)):
            merge_into(out, lse, part[..., :-1], part[..., -1])
        if cache.observer is not None:
            cache.observer.observe(q, past, lse, scale)
    return out.to(q.dtype)


def _attend_blocks(
    q: Tensor, blocks: Sequence[tuple[Tensor, Tensor]], scale: float, kernel: AttentionKernel
) -> tuple[Tensor, Tensor]:
    """Attend from every query to all keys of some blocks: q [t, heads, d], each block's keys and values [n, groups, d].

    Returns (out, lse) as the kernel does; without a block, zeros and minus infinity.
    """
    if not blocks:
        out = torch.zeros_like(q, dtype=torch.float32)
        return out, out.new_full(q.shape[:2], -torch.inf)
    (keys, values), *others = blocks
    out, lse = kernel.full_forward(q, keys.to(q.dtype), values.to(q.dtype), scale)
    for keys, values in others:
        merge_into(out, lse, *kernel.full_forward(q, keys.to(q.dtype), values.to(q.dtype), scale))
    return out, lse


def _with_lse(out: Tensor, lse: Tensor) -> Tensor:
    """[t, heads, d + 1], the logsumexp as last column, so that both travel in one message."""
    return torch.cat((out, lse[..., None]), dim=-1)


def checked(bounds: list[int], tokens: int) -> list[int]:
    """Return document bounds that cover `tokens` tokens. Raises ValueError for any others."""
    if bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to {tokens}, the number of tokens; it is {bounds}")
    return bounds


class _KernelAttention(torch.autograd.Function):
    """Causal attention inside documents, by a kernel's forward and backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float, kernel: AttentionKernel
    ) -> Tensor:
        out, lse = kernel.causal_forward(q, k, v, bounds, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.bounds, ctx.scale, ctx.kernel = bounds, scale, kernel
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        gradients = ctx.kernel.causal_backward(grad_out, q, k, v, out, lse, ctx.bounds, ctx.scale)
        return *(part.to(x.dtype) for part, x in zip(gradients, (q, k, v), strict=True)), None, None, None
