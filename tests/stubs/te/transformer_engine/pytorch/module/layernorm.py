"""transformer_engine/pytorch/module/layernorm.py, ops/basic/layer_norm.py (which **kwargs go to)"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...refuse import only


class LayerNorm(torch.nn.Module):
    def __init__(
        self,
        normalized_shape: Iterable[int] | int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sm_margin: int | dict = 0,
    ) -> None:
        super().__init__()
        only("LayerNorm", zero_centered_gamma=zero_centered_gamma, sm_margin=sm_margin)
        if (normalized_shape is None) == (hidden_size is None):
            raise RuntimeError("one of normalized_shape and hidden_size (deprecated) is needed")
        size, self.eps = normalized_shape if hidden_size is None else hidden_size, eps
        self.weight = torch.nn.Parameter(torch.ones(size, device=device, dtype=params_dtype or dtype))
        self.bias = torch.nn.Parameter(torch.zeros(size, device=device, dtype=params_dtype or dtype))
        if sequence_parallel is not None:
            self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]
            self.bias.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
