from __future__ import annotations

import torch
from torch import Tensor

from tests.stubs.varlen import attend, attend_backward


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert dropout_p == 0 and (window_size_left, window_size_right, softcap, return_softmax) == (-1, -1, 0.0, False)
    assert alibi_slopes is block_table is leftpad_k is seqused_k is None
    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    out, lse = attend(q, k, v, *bounds, causal, softmax_scale)
    return out, lse, torch.zeros(0), torch.zeros(2, dtype=torch.int64)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    assert dropout_p == 0 and (window_size_left, window_size_right, softcap) == (-1, -1, 0.0)
    assert alibi_slopes is rng_state is None and not deterministic
    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    found = attend_backward((dout, q, k, v, out, softmax_lse), *bounds, causal, softmax_scale)
    for target, gradient in zip((dq, dk, dv), found, strict=True):
        assert target is not None and target.dtype == q.dtype
        target.copy_(gradient)
    return torch.zeros(q.shape[1], len(q))
