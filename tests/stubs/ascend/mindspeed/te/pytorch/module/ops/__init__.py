"""Matrix products with the tensor-parallel communication around them (default_ops.py of the tip)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed.te.pytorch.module.ops.comm_overlap_ops import COMM_OVERLAP_CONFIG


def allgather_matmul(input_: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all ranks [s, b, h] times the weight [h, n], and those rows."""
    size, group = COMM_OVERLAP_CONFIG.get_tp_size(), COMM_OVERLAP_CONFIG.get_tp_group()
    total = input_.new_empty(input_.size(0) * size, *input_.shape[1:])
    dist.all_gather_into_tensor(total, input_.contiguous(), group=group)
    return total @ weight, total


def matmul_reduce_scatter(input_: Tensor, weight: Tensor) -> Tensor:
    """input [s, b, h] times weight [n, h], summed over the ranks; each keeps its rows."""
    size, group = COMM_OVERLAP_CONFIG.get_tp_size(), COMM_OVERLAP_CONFIG.get_tp_group()
    product = input_ @ weight.t()
    output = product.new_empty(product.size(0) // size, *product.shape[1:])
    dist.reduce_scatter_tensor(output, product.contiguous(), group=group)
    return output


def matmul_all_reduce(input_: Tensor, weight: Tensor) -> Tensor:
    """input [s, b, h] times weight [n, h], summed over the ranks."""
    size, group = COMM_OVERLAP_CONFIG.get_tp_size(), COMM_OVERLAP_CONFIG.get_tp_group()
    output = torch.matmul(input_, weight.t())
    if size > 1:
        dist.all_reduce(output, group=group)
    return output
