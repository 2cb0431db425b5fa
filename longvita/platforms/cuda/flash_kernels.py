"""Attention kernels for a GPU without Transformer Engine: flash-attn's, torch's own, and matrix products for fp32.

Both flash kernels support packed documents ("varlen") and return the logsumexp of each row, which is all that our own
context parallelism and KV cache need. They support bf16 and fp16 only.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from longvita.attention.kernel import AttentionKernel

HALF_TYPES = (torch.bfloat16, torch.float16)
Gradients = tuple[Tensor, Tensor, Tensor]
Documents = tuple[Tensor, Tensor, int, int]
"""int32 document bounds of queries and of keys, on the device; their longest documents."""


class VarlenKernel(AttentionKernel):
    """An AttentionKernel on a flash kernel for packed documents. fp32 is computed by plain matrix products."""

    @abstractmethod
    def run(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, **how: Any) -> tuple[Tensor, Tensor]:
        """Return (out [t, heads, d] of q's type, lse [heads, t] fp32).

        how: `causal` and `scale`.
        """

    @abstractmethod
    def run_backward(self, saved: tuple[Tensor, ...], documents: Documents, **how: Any) -> Gradients:
        """Gradients of q, k and v. saved: the output's gradient, q, k, v, the output (of q's type), lse [heads, t]."""

    @override
    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The model's own type: flash kernels accumulate in fp32."""
        return dtype

    @override
    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        return self._forward(q, k, v, bounds, bounds, True, scale)

    @override
    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self._forward(q, k, v, [0, len(q)], [0, len(k)], False, scale)

    @override
    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> Gradients:
        return self._backward((grad, q, k, v, out, lse), bounds, bounds, True, scale)

    @override
    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Gradients:
        return self._backward((grad, q, k, v, out, lse), [0, len(q)], [0, len(k)], False, scale)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, rows: list[int], keys: list[int], causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        if q.dtype not in HALF_TYPES:
            return plain_forward(q, k, v, rows, keys, causal, scale)
        documents = _documents(rows, keys, q.device)
        out, lse = self.run(_packed(q), _packed(k), _packed(v), documents, causal=causal, scale=scale)
        return out.float(), lse.transpose(0, 1).contiguous()

    def _backward(
        self, saved: tuple[Tensor, ...], rows: list[int], keys: list[int], causal: bool, scale: float
    ) -> Gradients:
        grad, q, k, v, out, lse = saved
        if q.dtype not in HALF_TYPES:
            return plain_backward(saved, rows, keys, causal, scale)
        halves = (grad.to(q.dtype), q, k, v, out.to(q.dtype))
        inputs = (*map(_packed, halves), lse.transpose(0, 1).contiguous())
        return self.run_backward(inputs, _documents(rows, keys, q.device), causal=causal, scale=scale)


class FlashAttnKernel(VarlenKernel):
    """The functions below flash-attn's autograd. tests/stubs/flash names the commit whose source was read."""

    def __init__(self) -> None:
        from flash_attn import flash_attn_interface

        self._interface = flash_attn_interface

    @override
    def run(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, **how: Any) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self._interface._flash_attn_varlen_forward(
            q, k, v, *documents, dropout_p=0.0, softmax_scale=how["scale"], causal=how["causal"]
        )
        return out, lse

    @override
    def run_backward(self, saved: tuple[Tensor, ...], documents: Documents, **how: Any) -> Gradients:
        _, q, k, v, *_ = saved
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        self._interface._flash_attn_varlen_backward(
            *saved,
            *gradients,
            *documents,
            dropout_p=0.0,
            softmax_scale=how["scale"],
            causal=how["causal"],
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return gradients


class TorchFlashKernel(VarlenKernel):
    """torch's own flash kernel: aten._flash_attention_forward and its backward (torch 2.13).

    forward, backward: substitutes for them, for tests on a machine without a GPU.
    """

    def __init__(self, forward: Callable | None = None, backward: Callable | None = None) -> None:
        self._run = forward or torch.ops.aten._flash_attention_forward
        self._run_backward = backward or torch.ops.aten._flash_attention_backward

    @override
    def run(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, **how: Any) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self._run(q, k, v, *documents, 0.0, how["causal"], False, scale=how["scale"])
        return out, lse

    @override
    def run_backward(self, saved: tuple[Tensor, ...], documents: Documents, **how: Any) -> Gradients:
        # Without dropout the random state is not read, but the kernel requires a tensor of its shape.
        state = torch.zeros(2, dtype=torch.uint64, device=saved[0].device)
        nothing = torch.empty(0, device=saved[0].device)
        return self._run_backward(*saved, *documents, 0.0, how["causal"], state, nothing, scale=how["scale"])


def _packed(x: Tensor) -> Tensor:
    """X with contiguous heads. Rows and heads may have any stride, as in a KV cache's pages."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _documents(rows: list[int], keys: list[int], device: torch.device) -> Documents:
    tensors = [torch.tensor(bounds, dtype=torch.int32, device=device) for bounds in (rows, keys)]
    longest = [max(end - start for start, end in itertools.pairwise(bounds)) for bounds in (rows, keys)]
    return tensors[0], tensors[1], longest[0], longest[1]


def plain_forward(
    q: Tensor, k: Tensor, v: Tensor, rows: list[int], keys: list[int], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (out [t, heads, d], lse [t, heads]) by full score matrices in fp32: for checks, and short sequences.

    rows, keys: document bounds of queries and of keys; causal requires them to be equal.
    """
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:2])
    for row, key in zip(itertools.pairwise(rows), itertools.pairwise(keys), strict=True):
        scores = _scores(q[slice(*row)], k[slice(*key)], causal, scale)
        norms = scores.logsumexp(-1)
        values = v[slice(*key)].repeat_interleave(q.shape[1] // k.shape[1], 1)
        out[slice(*row)] = torch.einsum("hqk,khd->qhd", (scores - norms[..., None]).exp_(), values)
        lse[slice(*row)] = norms.transpose(0, 1)
    return out, lse


def plain_backward(
    saved: tuple[Tensor, ...], rows: list[int], keys: list[int], causal: bool, scale: float
) -> Gradients:
    """Gradients of q, k and v for `plain_forward`; out and lse may cover more keys than these.

    saved: the output's gradient, q, k, v, the output, lse [t, heads].
    """
    grad, q, k, v, out, lse = saved
    grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    shared = (grad * out).sum(-1)
    for row, key in zip(itertools.pairwise(rows), itertools.pairwise(keys), strict=True):
        own, theirs = slice(*row), slice(*key)
        wide_k, wide_v = (x[theirs].repeat_interleave(repeats, 1) for x in (k, v))
        weights = (_scores(q[own], k[theirs], causal, scale) - lse[own].transpose(0, 1)[..., None]).exp_()
        weight_grads = torch.einsum("qhd,khd->hqk", grad[own], wide_v) - shared[own].transpose(0, 1)[..., None]
        score_grads = weights * weight_grads * scale
        grad_q[own] = torch.einsum("hqk,khd->qhd", score_grads, wide_k)
        for total, part in (
            (grad_k, torch.einsum("hqk,qhd->khd", score_grads, q[own])),
            (grad_v, torch.einsum("hqk,qhd->khd", weights, grad[own])),
        ):
            total[theirs] = part.unflatten(1, (-1, repeats)).sum(2)
    return grad_q, grad_k, grad_v


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Scaled scores [heads, queries, keys], minus infinity for each key after its query."""
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return scores
