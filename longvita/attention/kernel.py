"""What the methods of context parallelism need of a device: attention within one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class AttentionKernel(Protocol):
    """Attention of rows that lie in this process. q [t, heads, d]; k and v [u, groups, d]; heads a multiple of groups.

    Outputs are fp32: out [t, heads, d] and lse [t, heads], the logsumexp of each query's scaled scores. Gradients are
    fp32 or of the inputs' type.
    """

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which queries, keys and values of `dtype` come, and travel."""

    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        """(out, lse), causal inside each document; `bounds` are the documents' first rows, then t."""

    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v. `out` and `lse` may be those over more keys: the part of these keys results."""

    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(out, lse), every query over every key."""

    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, as for causal_backward."""


def merge_into(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Adds attention over other keys to (out [t, heads, d], lse [t, heads]), in place, as if over all of them."""
    total = lse.logaddexp(more_lse)
    out.mul_((lse - total).exp_()[..., None]).addcmul_(more_out, (more_lse - total).exp_()[..., None])
    lse.copy_(total)


def attend_blocks(
    q: Tensor, blocks: Sequence[tuple[Tensor, Tensor]], scale: float, kernel: AttentionKernel
) -> tuple[Tensor, Tensor]:
    """Every query over all keys of some blocks: q [t, heads, d], each block's keys and values [n, groups, d].

    Returns (out, lse) as the kernel does; over no block, zero and minus infinity.
    """
    if not blocks:
        out = torch.zeros_like(q, dtype=torch.float32)
        return out, out.new_full(q.shape[:2], -torch.inf)
    (keys, values), *others = blocks
    out, lse = kernel.full_forward(q, keys.to(q.dtype), values.to(q.dtype), scale)
    for keys, values in others:
        merge_into(out, lse, *kernel.full_forward(q, keys.to(q.dtype), values.to(q.dtype), scale))
    return out, lse
