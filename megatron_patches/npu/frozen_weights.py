"""The linear layer behind a norm, in MindSpeed's version, when its weight is frozen."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patches.patch import Patch

MODULE = "mindspeed.te.pytorch.module.layernorm_column_parallel_linear"
NAME = "linear_with_grad_accumulation_and_async_allreduce"


def linear(input: torch.Tensor, weight: torch.Tensor, **how: Any) -> torch.Tensor:
    """Megatron's linear layer [s, b, h] to [s, b, n]; for a frozen weight the one without a gradient of the weight."""
    from megatron.core.tensor_parallel import layers

    if weight.requires_grad:
        return layers.linear_with_grad_accumulation_and_async_allreduce(input, weight, **how)
    # Without the arguments about deferred weight gradients, which there are none of.
    how = {name: value for name, value in how.items() if name not in ("grad_output_buffer", "wgrad_deferral_limit")}
    return layers.linear_with_frozen_weight(input, weight, **{"tp_group": None} | how)


PATCHES = [
    Patch(
        target=f"{MODULE}:{NAME}",
        replacement=linear,
        why="the gradients of frozen weights are computed and thrown away: stage 1 trains the projector alone",
        versions="megatron-core==0.16.1",
        remove_when="MindSpeed asks weight.requires_grad, as Megatron's own layers do",
        signature=(
            f"def {NAME}(input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel, "
            "grad_output_buffer=None, wgrad_deferral_limit=0, async_grad_allreduce=None, tp_group=None)"
        ),
    )
]
