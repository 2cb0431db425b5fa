"""Attention over packed documents by products, with the shapes of flash kernels: lse [heads, t], bf16 or fp16."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    keys: Tensor,
    longest: int,
    longest_key: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (out of q's type, lse fp32 [heads, t])."""
    _check(q, k, v, rows, keys, longest, longest_key)
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[1], len(q))
    for own, theirs in _documents(rows, keys):
        scores = _scores(q[own], k[theirs], causal, scale)
        lse[:, own] = scores.logsumexp(-1)
        weights = scores.softmax(-1)
        out[own] = torch.einsum("hqk,khd->qhd", weights, _wide(v[theirs], q)).to(q.dtype)
    return out, lse


def attend_backward(
    saved: tuple[Tensor, ...], rows: Tensor, keys: Tensor, longest: int, longest_key: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the output and logsumexp may cover more keys than these."""
    grad, q, k, v, out, lse = saved
    _check(q, k, v, rows, keys, longest, longest_key)
    assert grad.dtype == out.dtype == q.dtype and lse.dtype == torch.float32 and lse.shape == (q.shape[1], len(q))
    grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    for own, theirs in _documents(rows, keys):
        weights = (_scores(q[own], k[theirs], causal, scale) - lse[:, own, None]).exp()
        shared = (grad[own].float() * out[own].float()).sum(-1).t()[..., None]
        inner = torch.einsum("qhd,khd->hqk", grad[own].float(), _wide(v[theirs], q)) - shared
        inner = weights * inner * scale
        grad_q[own] = torch.einsum("hqk,khd->qhd", inner, _wide(k[theirs], q))
        repeats = (k.shape[1], q.shape[1] // k.shape[1])
        grad_k[theirs] = torch.einsum("hqk,qhd->khd", inner, q[own].float()).unflatten(1, repeats).sum(2)
        grad_v[theirs] = torch.einsum("hqk,qhd->khd", weights, grad[own].float()).unflatten(1, repeats).sum(2)
    return grad_q.to(q.dtype), grad_k.to(q.dtype), grad_v.to(q.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, longest: int, longest_key: int) -> None:
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    for x, bounds, most in ((q, rows, longest), (k, keys, longest_key)):
        assert x.stride(-1) == 1 and bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(x)
        assert int(bounds.diff().max()) == most


def _documents(rows: Tensor, keys: Tensor) -> list[tuple[slice, slice]]:
    pairs = zip(itertools.pairwise(rows.tolist()), itertools.pairwise(keys.tolist()), strict=True)
    return [(slice(*own), slice(*theirs)) for own, theirs in pairs]


def _wide(x: Tensor, q: Tensor) -> Tensor:
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], 1)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q.float(), _wide(k, q)) * scale
    if causal:
        # Flash kernels align the last query with the last key.
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(scores.shape[2] - scores.shape[1] + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores
