"""Norms with the constructor that megatron-core's specs expect, for platforms without fused ones."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, [..., h], computed in fp32.

    With sequence parallel each rank has a part of the tokens, so the weight is marked for the sum of its gradient over
    the TP group. megatron-core's wrapper around torch's norms refuses sequence parallel.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        _mark(self.weight, config)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x; the result has its shape and dtype."""
        if x.dtype == torch.float32 == self.weight.dtype:
            return _RMSNormFunction.apply(x, self.weight, self.eps)
        normed = nn.functional.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return self.weight * normed.to(x.dtype)


class _RMSNormFunction(torch.autograd.Function):
    """fp32 RMSNorm. torch has no CPU kernel for it, and autograd through its parts takes three times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        mean_square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        normed = rows * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return (normed * weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """grad_x = (g w - n mean(g w n)) / rms, with n the normed x."""
        normed, inverse, weight = ctx.saved_tensors
        rows = grad.reshape(normed.shape)
        product = rows * normed
        mean = torch.mv(product, weight).div_(normed.shape[-1])
        grad_x = (rows * weight).addcmul_(normed, mean[:, None], value=-1).mul_(inverse)
        return grad_x.view(grad.shape), product.sum(0), None


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark(self.weight, config)
        _mark(self.bias, config)


def _mark(parameter: nn.Parameter, config: TransformerConfig) -> None:
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
