"""Ulysses attention (arXiv 2309.14509): one all-to-all exchanges rows for heads, a second one exchanges them back.

In between, each rank attends with some of the heads to all rows. With fewer KV groups than ranks, a group is sent once
to every rank whose heads read it, and its gradient is the sum over these ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention with some heads over all rows of the group: (q [n, heads, d], k and v [n, groups, d]) to [n, heads, d]."""


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, attend: Attend, group: dist.ProcessGroup) -> Tensor:
    """Run `attend` over the rows of all ranks of a group, in rank order, with heads / size heads on each rank.

    q [t, heads, d], k and v [t, groups, d]: rows of this rank; every rank has t of them. Returns [t, heads, d].
    A collective over the group, backward pass included. Raises ValueError when the heads do not divide over the ranks.
    """
    heads, groups, size = q.shape[1], k.shape[1], group.size()
    if heads % size:
        raise ValueError(f"{heads} heads do not divide over {size} ranks of Ulysses attention")
    own_groups = [_groups_of(rank, heads, groups, size) for rank in range(size)]
    own_heads = [list(range(rank * heads // size, (rank + 1) * heads // size)) for rank in range(size)]
    q_all = _RowsForHeads.apply(q, own_heads, group)
    k_all, v_all = (_RowsForHeads.apply(x, own_groups, group) for x in (k, v))
    index = _group_of_head(group.rank(), heads, groups, size)
    if index is not None:
        k_all, v_all = k_all[:, index], v_all[:, index]
    return _HeadsForRows.apply(attend(q_all, k_all, v_all), group)


def _groups_of(rank: int, heads: int, groups: int, size: int) -> list[int]:
    """Return the KV groups that a rank's heads read."""
    first, last = rank * heads // size, (rank + 1) * heads // size - 1
    return list(range(first * groups // heads, last * groups // heads + 1))


def _group_of_head(rank: int, heads: int, groups: int, size: int) -> list[int] | None:
    """Return the local KV group of each head of a rank; None where equal runs of heads read the groups in order."""
    own = _groups_of(rank, heads, groups, size)
    first = rank * heads // size
    index = [(first + head) * groups // heads - own[0] for head in range(heads // size)]
    count = len(index) // len(own)
    even = len(index) % len(own) == 0 and index == [head // count for head in range(len(index))]
    return None if even else index


class _RowsForHeads(torch.autograd.Function):
    """Each rank's x [t, heads, d] to [size * t, own heads, d]. `heads_of`: the heads of each rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads_of: list[list[int]], group: dist.ProcessGroup) -> Tensor:
        ctx.heads_of, ctx.group, ctx.shape = heads_of, group, x.shape
        own = len(heads_of[group.rank()])
        out = x.new_empty((group.size() * x.shape[0], own, *x.shape[2:]))
        sent = torch.cat([x[:, heads].reshape(-1) for heads in heads_of])
        sizes = [x.shape[0] * len(heads) * x.shape[2] for heads in heads_of]
        dist.all_to_all_single(out.view(-1), sent, [out.numel() // group.size()] * group.size(), sizes, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad, group = grads[0].contiguous(), ctx.group
        t, _, d = ctx.shape
        sizes = [t * len(heads) * d for heads in ctx.heads_of]
        received = grad.new_empty(sum(sizes))
        dist.all_to_all_single(
            received, grad.view(-1), sizes, [grad.numel() // group.size()] * group.size(), group=group
        )
        result = grad.new_zeros(ctx.shape)
        for heads, part in zip(ctx.heads_of, received.split(sizes), strict=True):
            result[:, heads] += part.view(t, len(heads), d)
        return result, None, None


class _HeadsForRows(torch.autograd.Function):
    """x [size * t, own heads, d] of each rank to [t, heads, d], every rank's heads in order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = group.size()
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        size = ctx.group.size()
        sent = grads[0].unflatten(1, (size, -1)).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=ctx.group)
        return received.flatten(0, 1), None
