"""The collectives around the matrix product of Transformer Engine's linear layers, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(x: Tensor, group: Any) -> Tensor:
    """The concatenated rows of all ranks; the gradient is the sum over ranks for the own rows."""
    return _Gather.apply(x, group)


def scattered_sum(x: Tensor, group: Any) -> Tensor:
    """This rank's rows of the sum over ranks."""
    return _ScatterSum.apply(x, group)


def copied(x: Tensor, group: Any) -> Tensor:
    """x itself, with a gradient that is summed over ranks."""
    return _Copy.apply(x, group)


def summed(x: Tensor, group: Any) -> Tensor:
    """The sum over ranks; each rank gets the full gradient."""
    return _Sum.apply(x, group)


def _all_gather(x: Tensor, group: Any) -> Tensor:
    out = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out


def _all_reduce(x: Tensor, group: Any) -> Tensor:
    x = x.clone()
    dist.all_reduce(x, group=group)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return _all_reduce(grads[0], ctx.group).chunk(ctx.group.size())[ctx.group.rank()], None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_reduce(x, group).chunk(group.size())[group.rank()].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return _all_gather(grads[0], ctx.group), None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return _all_reduce(grads[0], ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return grads[0], None
