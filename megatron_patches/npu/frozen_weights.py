"""MindSpeed's linear layer after a norm, for frozen weights."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patches.patch import Patch

MODULE = "mindspeed.te.pytorch.module.layernorm_column_parallel_linear"
NAME = "linear_with_grad_accumulation_and_async_allreduce"


def linear(input: torch.Tensor, weight: torch.Tensor, **how: Any) -> torch.Tensor:
    """Megatron's linear layer, [s, b, h] to [s, b, n]; for a frozen weight the variant without a weight gradient."""
    from megatron.core.tensor_parallel import layers

    if weight.requires_grad:
        return layers.linear_with_grad_accumulation_and_async_allreduce(input, weight, **how)
    # It has no arguments for deferred weight gradients.
    how = {name: value for name, value in how.items() if name not in ("grad_output_buffer", "wgrad_deferral_limit")}
    return layers.linear_with_frozen_weight(input, weight, **{"tp_group": None} | how)


PATCHES = [
    Patch(
        target=f"{MODULE}:{NAME}",
        replacement=linear,
        why="gradients of frozen weights are computed and discarded, although stage 1 trains only the projector",
        remove_when="MindSpeed checks weight.requires_grad, as Megatron's own layers do",
        signature=(
            f"def {NAME}(input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel, "
            "grad_output_buffer=None, wgrad_deferral_limit=0, async_grad_allreduce=None, tp_group=None)"
        ),
    )
]
