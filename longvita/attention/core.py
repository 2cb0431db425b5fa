"""Core attention that a platform builds from a kernel of its own: packed, whole tiles, split sequences, KV caches.

`CoreAttention` is the whole of it on a platform without a library for attention. A platform that has one takes
`attend_by_parts` for what no library does here: a sequence that lies as our own layout has it, and generation, where
keys and values wait in the cache of the rank that computed them. What is computed in parts is merged exactly through
the logsumexps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.attention.kernel import AttentionKernel, attend_blocks, merge_into

CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class CoreAttention(MegatronModule):
    """softmax(q k^T * scale) v with megatron-core's core attention interface, on `kernel`.

    softmax_scale: 1/sqrt(head_dim) when None. The attention_mask argument of `forward` is not read: which keys a query
    sees follows from packed_seq_params and attn_mask_type.
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
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size != 1:
            raise ValueError(f"context_parallel_size={config.context_parallel_size}: this attention needs it to be 1")
        if attention_dropout or (attention_dropout is None and config.attention_dropout):
            raise ValueError(f"attention_dropout={config.attention_dropout}: this attention needs it to be 0")
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale

    def attend_documents(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
        """Causal attention inside each document: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

        bounds: starts of the documents, then t.
        """
        return _KernelAttention.apply(q, k, v, bounds, scale, self.kernel)

    def attend_batch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        """Attention in each column of a batch: q [s, b, heads, d], k and v [s, b, groups, d] to [s, b, heads, d]."""
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
        parts = attend_by_parts(packed_seq_params, self.layer_number, query, key, value, scale, self.kernel)
        if parts is None:
            bounds = packed_seq_params.cu_seqlens_q_padded
            bounds = packed_seq_params.cu_seqlens_q if bounds is None else bounds
            parts = self.attend_documents(query, key, value, checked(bounds.tolist(), len(query)), scale)
        return parts.reshape(parts.shape[0], 1, -1)


def attend_by_parts(
    params: PackedSeqParams,
    layer_number: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    kernel: AttentionKernel,
) -> Tensor | None:
    """Attention over a split sequence or a KV cache, q [t, heads, d], k and v [t, groups, d] to q's; None for neither.

    A collective over the CP group where the sequence is split.
    """
    cache, split = getattr(params, "kv_cache", None), getattr(params, "split", None)
    if split is not None and cache is not None:
        return split.with_cache(cache, layer_number, query, key, value, scale, kernel)
    if split is not None:
        return split(query, key, value, scale, kernel)
    if cache is None:
        return None
    past = cache.past(layer_number)
    cache.append(layer_number, key, value)
    out, lse = attend_chunk(query, key, value, past, scale, kernel)
    if cache.watch is not None:
        cache.watch.observe(query, past, lse, scale)
    return out


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, past: Sequence[tuple[Tensor, Tensor]], scale: float, kernel: AttentionKernel
) -> tuple[Tensor, Tensor]:
    """A chunk's queries over what is cached and, causally, over the chunk: q [t, heads, d], k and v [t, groups, d].

    past: keys and values [n, groups, d] of the tokens before the chunk, in blocks. Returns [t, heads, d] and the
    logsumexps [t, heads]. For generation: no gradients.
    """
    dtype = kernel.compute_dtype(q.dtype)
    queries = q.to(dtype)
    with torch.no_grad():
        out, lse = kernel.causal_forward(queries, k.to(dtype), v.to(dtype), [0, len(q)], scale)
        if past:
            merge_into(out, lse, *attend_blocks(queries, past, scale, kernel))
    return out.to(q.dtype), lse


def checked(bounds: list[int], tokens: int) -> list[int]:
    """Bounds of documents that cover `tokens` tokens. Raises ValueError for others."""
    if bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to {tokens}, the number of tokens; it is {bounds}")
    return bounds


class _KernelAttention(torch.autograd.Function):
    """Causal attention inside documents, of a kernel's forward and backward pass."""

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
