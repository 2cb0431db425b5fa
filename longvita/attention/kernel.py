"""The contract of an attention kernel: attention over rows of one process, on one device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class AttentionKernel(Protocol):
    """Attention over rows of this process. q [t, heads, d]; k and v [u, groups, d]; heads a multiple of groups.

    Outputs are fp32: out [t, heads, d] and lse [t, heads], the logsumexp of each query's scaled scores. Gradients are
    fp32 or of the inputs' type.
    """

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type that queries, keys and values of `dtype` are converted to before they travel or are used."""

    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        """Return (out, lse), causal inside each document. `bounds`: the documents' first rows, then t."""

    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v.

        Where `out` and `lse` were merged over more keys, the result is these keys' part of the gradients.
        """

    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return (out, lse), every query attending to every key."""

    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v, as for causal_backward."""
