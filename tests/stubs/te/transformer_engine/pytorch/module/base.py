"""transformer_engine/pytorch/module/base.py"""

from __future__ import annotations

from typing import Any

import torch


class TransformerEngineBaseModule(torch.nn.Module):
    """Every module has an extra state in its state dict: FP8 scales, empty without FP8."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        if state is not None and state.numel():
            raise NotImplementedError("an extra state of FP8")


def get_dummy_wgrad(shape: list, dtype: torch.dtype, zero: bool = False) -> Any:
    raise NotImplementedError("gradient accumulation fusion needs apex")


def set_tensor_model_parallel_attributes(
    tensor: torch.Tensor, is_parallel: bool, dim: int, stride: int
) -> None:  # transformer_engine/pytorch/distributed.py
    tensor.tensor_model_parallel = is_parallel  # type: ignore[attr-defined]
    tensor.partition_dim = dim  # type: ignore[attr-defined]
    tensor.partition_stride = stride  # type: ignore[attr-defined]
