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

    send_order: Tensor
    """[rows to send] index into the local rows, sorted by destination."""
    send_counts: list[int]
    """Rows for each rank."""
    receive_counts: list[int]
    """Rows from each rank."""
    positions: Tensor
    """[rows received] position of each received row in this rank's slice of the sequence."""
    replicated: bool
    """Whether every rank receives every row (tensor parallel without sequence parallel)."""


def plan_rows(tile_starts: Tensor, tile_owners: Tensor, rows_per_tile: int, length: int, groups: Any, split: bool):
    """The RowPlan of this rank for one micro batch.

    tile_starts: [n] position of each tile's first row in the micro batch of `length` positions; tile_owners: [n] rank
    that encodes it. `split` says whether each rank owns a contiguous 1/size of the positions (sequence parallel) or all.
    """
    rank, size = groups.vision_rank, groups.vision_size
    positions = (tile_starts[:, None] + torch.arange(rows_per_tile, device=tile_starts.device)).reshape(-1)
    sources = tile_owners.repeat_interleave(rows_per_tile)
    counts = torch.bincount(sources, minlength=size).tolist() if len(sources) else [0] * size
    mine = sources == rank
    if not split:
        order = torch.argsort(sources, stable=True)
        own = torch.arange(int(mine.sum()), device=positions.device)
        return RowPlan(own.repeat(size), [len(own)] * size, counts, positions[order], True)
    slice_length = length // size
    destinations = positions.div(slice_length, rounding_mode="floor")
    send = destinations[mine]
    received = destinations == rank
    arrival = torch.argsort(sources[received], stable=True)
    return RowPlan(
        send_order=torch.argsort(send, stable=True),
        send_counts=torch.bincount(send, minlength=size).tolist(),
        receive_counts=torch.bincount(sources[received], minlength=size).tolist(),
        positions=(positions[received] - rank * slice_length)[arrival],
        replicated=False,
    )


class _ExchangeRows(torch.autograd.Function):
    """All-to-all of rows by a RowPlan; the backward pass sends each row's gradient home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: RowPlan, group: dist.ProcessGroup) -> Tensor:
        ctx.plan, ctx.group, ctx.count = plan, group, rows.shape[0]
        return _all_to_all(rows[plan.send_order], plan.send_counts, plan.receive_counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        plan: RowPlan = ctx.plan
        (grad,) = grads
        if plan.replicated:
            # Every rank holds the same gradient of every row: this rank's own rows are a slice, nothing to send.
            start = sum(plan.receive_counts[: ctx.group.rank()])
            return grad[start : start + ctx.count], None, None
        back = _all_to_all(grad.contiguous(), plan.receive_counts, plan.send_counts, ctx.group)
        home = torch.empty_like(back)
        home[plan.send_order] = back
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
    return [p for name, p in model.named_parameters() if any(m in f"{name}." for m in marks)]
