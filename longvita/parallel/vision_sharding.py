"""Tiles shared out over the ranks of a replica, and their feature rows carried to the ranks that own them.

Each tile is decoded and encoded once, by one rank of the replica's TP x CP group. Which one follows from the number of
tiles alone, so every rank knows it without asking. The rows of the features then travel to the ranks whose slice of the
sequence holds their positions; the gradients take the same way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.parallel.groups import ParallelGroups


def assign_tiles(num_tiles: int, ranks: int) -> Tensor:
    """The rank that encodes each tile: [num_tiles] int64, contiguous runs whose lengths differ by one at most.

    Contiguous runs let a rank decode a video in one sweep and keep most rows near the slice that needs them.
    """
    return (torch.arange(num_tiles) * ranks).div(max(num_tiles, 1), rounding_mode="floor")


@dataclass(frozen=True)
class RowPlan:
    """Which feature rows this rank sends where, and where the rows that it receives belong."""

    local_rows: int
    """Rows that this rank encodes."""
    send_order: Tensor
    """[rows to send] index into the local rows, by destination."""
    send_counts: list[int]
    """Rows for each rank."""
    receive_counts: list[int]
    """Rows from each rank."""
    positions: Tensor
    """[rows received] position of each received row in this rank's slice of the sequence."""
    replicated: bool
    """Whether every rank receives every row (tensor parallel without sequence parallel)."""


def plan_rows(
    tile_starts: Tensor, tile_owners: Tensor, rows_per_tile: int, length: int, groups: ParallelGroups, split: bool
) -> RowPlan:
    """The RowPlan of this rank for one micro batch.

    tile_starts: [n] position of each tile's first row in the micro batch of `length` positions; rows that fall outside
    it (a prefill chunk may cut a tile) go nowhere. tile_owners: [n] rank that encodes each tile. `split` says whether
    each rank owns a contiguous 1/size of the positions (sequence parallel) or all of them.
    """
    rank, size = groups.vision_rank, groups.vision_size
    positions = (tile_starts[:, None] + torch.arange(rows_per_tile, device=tile_starts.device)).reshape(-1)
    sources = tile_owners.repeat_interleave(rows_per_tile)
    inside = (positions >= 0) & (positions < length)
    mine = sources == rank
    own = torch.nonzero(inside[mine])[:, 0]
    if not split:
        order = torch.argsort(sources[inside], stable=True)
        return RowPlan(
            local_rows=int(mine.sum()),
            send_order=own.repeat(size),
            send_counts=[len(own)] * size,
            receive_counts=_counts(sources[inside], size),
            positions=positions[inside][order],
            replicated=True,
        )
    slice_length = length // size
    destinations = positions.div(slice_length, rounding_mode="floor")
    send = destinations[mine & inside]
    received = destinations == rank
    arrival = torch.argsort(sources[received], stable=True)
    return RowPlan(
        local_rows=int(mine.sum()),
        send_order=own[torch.argsort(send, stable=True)],
        send_counts=_counts(send, size),
        receive_counts=_counts(sources[received], size),
        positions=(positions[received] - rank * slice_length)[arrival],
        replicated=False,
    )


def _counts(ranks: Tensor, size: int) -> list[int]:
    return torch.bincount(ranks, minlength=size).tolist()


class _ExchangeRows(torch.autograd.Function):
    """All-to-all of rows by a RowPlan; the backward pass sends each row's gradient home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: RowPlan, group: dist.ProcessGroup) -> Tensor:
        ctx.plan, ctx.group = plan, group
        return _all_to_all(rows[plan.send_order], plan.send_counts, plan.receive_counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        plan: RowPlan = ctx.plan
        grad = grads[0]
        home = grad.new_zeros((plan.local_rows, *grad.shape[1:]))
        if plan.replicated:
            # Every rank holds the same gradient of every row: this rank's own rows are a slice, nothing to send.
            rank = ctx.group.rank()
            start, count = sum(plan.receive_counts[:rank]), plan.receive_counts[rank]
            home[plan.send_order[:count]] = grad[start : start + count]
        else:
            home[plan.send_order] = _all_to_all(grad, plan.receive_counts, plan.send_counts, ctx.group)
        return home, None, None


def _all_to_all(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1:
        return rows
    output = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(output, rows.contiguous(), receive, send, group=group)
    return output


def exchange_rows(rows: Tensor, plan: RowPlan, group: dist.ProcessGroup) -> Tensor:
    """Carries feature rows [local rows, h] to their owners: [rows received, h], in the order of plan.positions."""
    return _ExchangeRows.apply(rows, plan, group)


def sum_vision_gradients(models: Iterable[torch.nn.Module], groups: ParallelGroups) -> None:
    """Adds up the gradients of vision tower and projector over TP, after data-parallel reduction.

    Each TP rank encoded other tiles with its copy of the same weights, so the gradient of a weight is the sum over
    ranks. (CP ranks are part of the data-parallel reduction already.) Works on `main_grad` where DDP set it, else
    `grad`; a parameter without a gradient counts as zero. Call it on every rank of the stage.
    """
    if groups.tp_size == 1:
        return
    grads = []
    for model in models:
        for parameter in vision_parameters(model):
            if not parameter.requires_grad:
                continue
            if hasattr(parameter, "main_grad"):
                grads.append(parameter.main_grad)
            else:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
    if not grads:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat, group=groups.tp)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def vision_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters of a model, wrapped or not, that every TP rank holds whole: the vision tower's and the projector's."""
    marks = ("vision_model.", "vision_projection.")
    return [p for name, p in model.named_parameters() if any(mark in name for mark in marks)]
