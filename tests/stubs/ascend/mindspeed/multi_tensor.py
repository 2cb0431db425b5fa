"""MindSpeed's versions of apex's functions over lists of tensors."""

from __future__ import annotations

from typing import Any

import torch


def multi_tensor_applier(op: Any, noop_flag_buffer: Any, tensor_lists: list, *args: Any) -> Any:
    """Calls op."""
    return op(noop_flag_buffer, tensor_lists, *args)


def multi_tensor_l2norm(overflow_buf: Any, tensor_lists: list, per_parameter: bool) -> tuple[torch.Tensor, None]:
    """The norm over all tensors."""
    total = torch.zeros(1)
    for grads in tensor_lists:
        for grad in grads:
            total += torch.norm(grad, 2.0) ** 2
    return total**0.5, None


def multi_tensor_scale(overflow_buf: Any, tensor_lists: list, scale: Any) -> None:
    """Set the second list to the first, scaled."""
    with torch.no_grad():
        for source, target in zip(*tensor_lists, strict=True):
            target.copy_(source * scale)
