"""Core attention of the CPU platform, on torch's flash kernel for CPUs.

The kernel returns the output and the logsumexp of each row, and supports fewer key and value heads than query heads
(GQA) without copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from longvita.attention.core import CoreAttention, checked
from longvita.attention.kernel import AttentionKernel
from longvita.platforms.cpu.document_groups import DocumentPlan, plan_documents

MAX_FOLDED_ROWS = 16
"""Maximum number of query rows whose heads are folded. With more rows the kernel reuses keys and values anyway."""


def attend_documents(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
    """Causal attention inside each document: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

    bounds: starts of the documents, then t. bf16 is computed in fp32. Raises ValueError if bounds do not fit t.
    """
    plan = plan_documents(tuple(checked(bounds, len(q))))
    return _DocumentAttention.apply(q.float(), k.float(), v.float(), plan, scale).to(q.dtype)


def attend_batch(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention in each column of a batch: q [s, b, heads, d], k and v [s, b, groups, d] to [s, b, heads, d]."""
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.float().permute(1, 2, 0, 3) for x in (q, k, v)), 0.0, causal, scale=scale
    )
    return out.permute(2, 0, 1, 3).to(q.dtype)


class FlashKernel(AttentionKernel):
    """torch's flash kernel for CPUs."""

    @override
    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fp32: matrix products in bf16 are two hundred times slower."""
        return torch.float32

    @override
    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        if len(bounds) == 2 and len(q):
            out, lse = _forward(_heads_first(q), _heads_first(k), _heads_first(v), True, scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        plan = plan_documents(tuple(bounds))
        out, lses = _documents_forward(q, k, v, plan, scale)
        return out, plan.join([lse[..., None] for lse in lses])[..., 0]

    @override
    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = plan_documents(tuple(bounds))
        lses = [group.take(lse[..., None])[..., 0].contiguous() for group in plan.groups]
        return _documents_backward(grad, q, k, v, out, lses, plan, scale)

    @override
    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
        if repeats == 1 or len(q) > MAX_FOLDED_ROWS:
            out, lse = _forward(_heads_first(q), _heads_first(k), _heads_first(v), False, scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        # The query heads of a group become rows of one head, so that keys and values are read once for all of them.
        folded = q.unflatten(1, (groups, repeats)).transpose(1, 2).flatten(0, 1)
        out, lse = self.full_forward(folded, k, v, scale)
        return _unfold(out, repeats), _unfold(lse, repeats)

    @override
    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [_heads_first(x) for x in (grad, q, k, v, out)]
        parts = _backward(inputs, lse.transpose(0, 1)[None].contiguous(), False, scale)
        grad_q, grad_k, grad_v = (part[0].transpose(0, 1) for part in parts)
        return grad_q, grad_k, grad_v


class PackedAttention(CoreAttention):
    """CoreAttention on FlashKernel, which computes documents of similar lengths in one call."""

    kernel = FlashKernel()

    @override
    def attend_documents(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
        return attend_documents(q, k, v, bounds, scale)

    @override
    def attend_batch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        return attend_batch(q, k, v, scale, causal)


def _unfold(x: Tensor, repeats: int) -> Tensor:
    """[t * repeats, groups, ..] to [t, groups * repeats, ..]."""
    return x.unflatten(0, (-1, repeats)).transpose(1, 2).flatten(1, 2)


class _DocumentAttention(torch.autograd.Function):
    """`attend_documents` as one autograd node: slicing outside of it would copy the full gradients per document."""

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
