"""Core attention on CPU: packed documents, whole tiles, and a chunk of tokens over a KV cache.

Built on torch's flash kernel for CPU, which returns the logsumexp of each row beside the output and takes fewer
key and value heads than query heads (GQA) as they are. What it computes in parts (a cache and a chunk) is merged
exactly through the logsumexps.
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

from longvita.parallel.context_parallel.kernel import attend_blocks, merge_into
from longvita.platforms.document_groups import DocumentPlan, plan_documents

FOLDED_ROWS = 16
"""Most rows of queries whose heads are folded: with more the kernel reads keys and values once for many rows anyway."""
CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class PackedAttention(MegatronModule):
    """softmax(q k^T * scale) v with megatron-core's core attention interface.

    softmax_scale: 1/sqrt(head_dim) when None. The attention_mask argument of `forward` is not read: which keys a query
    sees follows from packed_seq_params and attn_mask_type.
    """

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
            out = attend_batch(query, key, value, scale, causal)
            return out.reshape(out.shape[0], out.shape[1], -1)
        cache = getattr(packed_seq_params, "kv_cache", None)
        split = getattr(packed_seq_params, "split", None)
        if split is not None and cache is not None:
            out = split.with_cache(cache, self.layer_number, query, key, value, scale, FlashKernel())
        elif split is not None:
            out = split(query, key, value, scale, FlashKernel())
        elif cache is not None:
            out = self._attend_with_cache(cache, query, key, value, scale)
        else:
            bounds = packed_seq_params.cu_seqlens_q_padded
            bounds = packed_seq_params.cu_seqlens_q if bounds is None else bounds
            out = attend_documents(query, key, value, bounds.tolist(), scale)
        return out.reshape(out.shape[0], 1, -1)

    def _attend_with_cache(self, cache: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Appends the chunk's keys and values to the cache and attends to all of them, bottom-right causally."""
        past = cache.past(self.layer_number)
        cache.append(self.layer_number, key, value)
        out, lse = attend_chunk(query, key, value, past, scale)
        if cache.watch is not None:
            cache.watch.observe(query, past, lse, scale)
        return out


def attend_documents(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
    """Causal attention inside each document: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

    bounds: starts of the documents, then t. bf16 is computed in fp32. Raises ValueError if bounds do not fit t.
    """
    if bounds[0] != 0 or bounds[-1] != q.shape[0] or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to {q.shape[0]}, the number of tokens; it is {bounds}")
    plan = plan_documents(tuple(bounds))
    return _DocumentAttention.apply(q.float(), k.float(), v.float(), plan, scale).to(q.dtype)


def attend_batch(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention in each column of a batch: q [s, b, heads, d], k and v [s, b, groups, d] to [s, b, heads, d]."""
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.float().permute(1, 2, 0, 3) for x in (q, k, v)), 0.0, causal, scale=scale
    )
    return out.permute(2, 0, 1, 3).to(q.dtype)


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, past: Sequence[tuple[Tensor, Tensor]], scale: float
) -> tuple[Tensor, Tensor]:
    """A chunk's queries over what is cached and, causally, over the chunk: q [t, heads, d], k and v [t, groups, d].

    past: keys and values [n, groups, d] of the tokens before the chunk, in blocks. Returns [t, heads, d] and the
    logsumexps [t, heads]. For generation: no gradients.
    """
    q32, kernel = q.float(), FlashKernel()
    with torch.no_grad():
        out, lse = kernel.causal_forward(q32, k.float(), v.float(), [0, len(q)], scale)
        if past:
            merge_into(out, lse, *attend_blocks(q32, past, scale, kernel))
    return out.to(q.dtype), lse


class FlashKernel:
    """torch's flash kernel for CPU as an AttentionKernel (longvita.parallel.context_parallel.kernel)."""

    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionKernel."""
        plan = plan_documents(tuple(bounds))
        out, lses = _documents_forward(q, k, v, plan, scale)
        return out, plan.join([lse[..., None] for lse in lses])[..., 0]

    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See AttentionKernel."""
        plan = plan_documents(tuple(bounds))
        lses = [group.take(lse[..., None])[..., 0].contiguous() for group in plan.groups]
        return _documents_backward(grad, q, k, v, out, lses, plan, scale)

    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionKernel."""
        groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
        if repeats == 1 or len(q) > FOLDED_ROWS:
            out, lse = _forward(_heads_first(q), _heads_first(k), _heads_first(v), False, scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        # The query heads of a group as rows of one head: keys and values are read once for all of them.
        folded = q.unflatten(1, (groups, repeats)).transpose(1, 2).flatten(0, 1)
        out, lse = self.full_forward(folded, k, v, scale)
        return _unfold(out, repeats), _unfold(lse, repeats)

    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See AttentionKernel."""
        inputs = [_heads_first(x) for x in (grad, q, k, v, out)]
        parts = _backward(inputs, lse.transpose(0, 1)[None].contiguous(), False, scale)
        grad_q, grad_k, grad_v = (part[0].transpose(0, 1) for part in parts)
        return grad_q, grad_k, grad_v


def _unfold(x: Tensor, repeats: int) -> Tensor:
    """[t * repeats, groups, ..] to [t, groups * repeats, ..]."""
    return x.unflatten(0, (-1, repeats)).transpose(1, 2).flatten(1, 2)


class _DocumentAttention(torch.autograd.Function):
    """`attend_documents` as one node of the graph: slicing outside would copy whole gradients per document."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: DocumentPlan, scale: float) -> Tensor:
        out, lses = _documents_forward(q, k, v, plan, scale)
        ctx.save_for_backward(q, k, v, out, *lses)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *lses = ctx.saved_tensors
        return *_documents_backward(grad_out, q, k, v, out, lses, ctx.plan, ctx.scale), None, None


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: DocumentPlan, scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Output [t, heads, d], and the logsumexps [documents, heads, length] of each group of the plan."""
    parts = [_forward(group.take(q), group.take(k), group.take(v), True, scale) for group in plan.groups]
    return plan.join([out for out, _ in parts]), [lse for _, lse in parts]


def _documents_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lses: list[Tensor], plan: DocumentPlan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    parts = []
    for group, lse in zip(plan.groups, lses, strict=True):
        inputs = [group.take_gradient(grad), *(group.take(x) for x in (q, k, v, out))]
        parts.append(_backward(inputs, lse, True, scale))
    grad_q, grad_k, grad_v = (plan.join(list(batches)) for batches in zip(*parts))
    return grad_q, grad_k, grad_v


def _heads_first(x: Tensor) -> Tensor:
    """[s, heads, d] to the kernel's [1, heads, s, d], without a copy."""
    return x.transpose(0, 1)[None]


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _backward(inputs: list[Tensor], lse: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; inputs: the output's gradient, q, k, v and the output."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, lse, 0.0, causal, scale=scale)
