"""Stub of torch's aten._flash_attention_forward and _backward (torch 2.13): packed documents by matrix products.

tests/unit/platforms/cuda/test_flash_kernels.py compares the parameters with the schema of the installed torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.stubs.varlen import attend, attend_backward


def flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert dropout_p == 0 and not return_debug_mask and scale is not None
    assert window_size_left is window_size_right is seqused_k is alibi_slopes is block_table is num_splits is None
    out, lse = attend(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, is_causal, scale)
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(0), torch.zeros(0)


def flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert dropout_p == 0 and scale is not None and window_size_left is window_size_right is None
    assert rng_state.dtype == torch.uint64
    saved = (grad_out, query, key, value, out, logsumexp)
    return attend_backward(saved, cum_seq_q, cum_seq_k, max_q, max_k, is_causal, scale)
