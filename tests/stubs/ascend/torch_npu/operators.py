"""Norm, rotary and SwiGLU operators of torch_npu in plain torch. Their source: torch_npu.SCHEMAS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        wide = x.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, gamma, rstd)
        ctx.mark_non_differentiable(rstd)
        return (wide * rstd * gamma.float()).to(x.dtype), rstd

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, rstd = ctx.saved_tensors
        return *npu_rms_norm_backward(dy, x, gamma, rstd), None


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> tuple[Tensor, Tensor]:
    """input / rms(input) * gamma over the last dimension, and 1 / rms."""
    return _RMSNorm.apply(input, gamma, epsilon)


def npu_rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of input and gamma."""
    normed, grad = input.float() * rstd, dy.float()
    weighted = grad * gamma.float()
    dx = rstd * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
    return dx.to(input.dtype), (grad * normed).flatten(0, -2).sum(0).to(gamma.dtype)


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """input * r1 + rotated(input) * r2, where rotated swaps the halves and negates what becomes the first."""
    if rotary_mode != "half" or rotate is not None:
        raise NotImplementedError(f"npu_rotary_mul: rotary_mode {rotary_mode!r} with rotate is not modelled here")
    if input.dim() != 4 or r1.dim() != 4 or r1.shape != r2.shape:
        raise ValueError(f"npu_rotary_mul takes four dimensions, not {input.shape}, {r1.shape} and {r2.shape}")
    first, second = input.chunk(2, dim=-1)
    return input * r1 + torch.cat([-second, first], dim=-1) * r2


def npu_rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, r1 and r2."""
    leaves = [x.detach().requires_grad_() for x in (input, r1, r2)]
    with torch.enable_grad():
        out = npu_rotary_mul(*leaves, rotary_mode=rotary_mode)
    return torch.autograd.grad(out, leaves, grad)


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) * second half."""
    gate, up = input.chunk(2, dim=dim)
    return torch.nn.functional.silu(gate) * up


def npu_swiglu_backward(grad_output: Tensor, input: Tensor, dim: int = -1) -> Tensor:
    """Gradient of input."""
    leaf = input.detach().requires_grad_()
    with torch.enable_grad():
        out = npu_swiglu(leaf, dim)
    return torch.autograd.grad(out, leaf, grad_output)[0]
