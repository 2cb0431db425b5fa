"""MindSpeed's norms and its SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
import torch_npu
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """core/fusions/fused_rms_norm.py."""

    def __init__(self, dim: int, eps: float = 1e-6, sequence_parallel: bool = False, config: Any = None) -> None:
        super().__init__()
        self.eps, self.config = eps, config
        self.weight = torch.nn.Parameter(torch.ones(dim))
        self.weight.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Fused."""
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]


class PTNorm:
    """The norm of the config."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:  # type: ignore[misc]
        if config.normalization == "LayerNorm":
            return torch.nn.LayerNorm(normalized_shape=hidden_size, eps=eps)
        return RMSNorm(dim=hidden_size, eps=eps, sequence_parallel=config.sequence_parallel, config=config)


class SwiGLUFunction:
    """core/fusions/fused_bias_swiglu.py."""

    @staticmethod
    def apply(input: Tensor, *args: Any) -> Tensor:
        """Fused."""
        return torch_npu.npu_swiglu(input, dim=-1)
