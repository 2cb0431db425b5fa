"""Feature rows of tiles, carried from the rank that encodes a tile to the ranks that hold the rows' positions.

Which row goes where follows from the tiles' positions and the sequence layout, so every rank computes its plan without
communication. Gradients travel the same way back.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import SequenceLayout


def tile_rounds(owners: Tensor, chunk: int) -> Tensor:
    """Return the round in which each tile is encoded and its rows travel: [n] int64; `chunk` tiles of a rank per round.

    owners: [n] rank that encodes each tile, ascending.
    """
    number = torch.arange(len(owners), device=owners.device) - torch.searchsorted(owners, owners)
    return number.div(chunk, rounding_mode="floor")


@dataclass(frozen=True)
class RowPlan:
    """One rank's part in an exchange of feature rows and of their gradients."""

    local_rows: int
    """Rows that this rank encodes."""
    send_order: Tensor
    """[rows sent] index into the local rows, by destination."""
    send_counts: list[int]
    """Rows for each rank."""
    receive_counts: list[int]
    """Rows from each rank."""
    positions: Tensor
    """[rows received] row of this rank's hidden states for each received row."""
    return_order: Tensor
    """[gradients returned] index into the received rows, by their source."""
    return_counts: list[int]
    """Gradients for each rank."""
    home_order: Tensor
    """[gradients received] index into the local rows, by the rank that returns the gradient."""
    home_counts: list[int]
    """Gradients from each rank."""

    def to(self, device: torch.device) -> RowPlan:
        """Return the plan with its indices on `device`."""
        indices = ("send_order", "positions", "return_order", "home_order")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in indices})


def plan_rows(
    tile_starts: Tensor, tile_owners: Tensor, rows_per_tile: int, layout: SequenceLayout, groups: ParallelGroups
) -> RowPlan:
    """Return this rank's plan for the tiles of one round.

    tile_starts: [n] number of each tile's first token in `layout`; rows outside the layout (a prefill chunk may cut a
    tile) are not sent. tile_owners: [n] rank of the TP x CP group that encodes each tile.

    A row goes to the CP rank of its position: to one of its TP ranks under sequence parallelism, else to all of them.
    In the latter case all have the same gradient, and one of them returns it.
    """
    this, size, tp_size = groups.vision_rank, groups.vision_size, groups.tp_size
    # 1. Each row's token, the rank that encodes it (its source), and its index among the rows of this rank.
    tokens = (tile_starts[:, None] + torch.arange(rows_per_tile, device=tile_starts.device)).reshape(-1).cpu()
    sources = tile_owners.cpu().repeat_interleave(rows_per_tile)
    index = torch.cumsum(sources == this, 0) - 1
    inside = (tokens >= 0) & (tokens < sum(layout.lengths))
    tokens, sources, index = tokens[inside], sources[inside], index[inside]
    # 2. The ranks that need it, and the rank that returns its gradient.
    cp_rank, tp_rank, row = layout.rows_of_tokens(tokens)
    if layout.tp_size > 1 or tp_size == 1:
        returner = cp_rank * tp_size + tp_rank
        needed_by = [returner == rank for rank in range(size)]
    else:
        returner = cp_rank * tp_size + sources % tp_size
        needed_by = [cp_rank == rank // tp_size for rank in range(size)]
    # 3. Rows in the order in which messages carry them: by peer, then by token.
    own = sources == this
    received = _sorted_by(sources, needed_by[this])
    returned = returner[received] == this
    home = _sorted_by(returner, own)
    return RowPlan(
        local_rows=int((tile_owners == this).sum()) * rows_per_tile,
        send_order=torch.cat([index[own & needed] for needed in needed_by]),
        send_counts=[int((own & needed).sum()) for needed in needed_by],
        receive_counts=_counts(sources[received], size),
        positions=row[received],
        return_order=torch.nonzero(returned)[:, 0],
        return_counts=_counts(sources[received][returned], size),
        home_order=index[home],
        home_counts=_counts(returner[home], size),
    )


def _sorted_by(ranks: Tensor, selected: Tensor) -> Tensor:
    """Return the selected rows, sorted by rank; rows of one rank keep their order."""
    rows = torch.nonzero(selected)[:, 0]
    return rows[torch.argsort(ranks[rows], stable=True)]


def _counts(ranks: Tensor, size: int) -> list[int]:
    return torch.bincount(ranks, minlength=size).tolist()


def exchange_rows(rows: Tensor, plan: RowPlan, group: dist.ProcessGroup) -> Tensor:
    """Send feature rows [local rows, h] where they are needed: [rows received, h], in the order of plan.positions."""
    return _ExchangeRows.apply(rows, plan, group)


class _ExchangeRows(torch.autograd.Function):
    """All-to-all of rows by a RowPlan; the backward pass returns each row's gradient to its source."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: RowPlan, group: dist.ProcessGroup) -> Tensor:
        ctx.plan, ctx.group = plan, group
        return _all_to_all(rows[plan.send_order], plan.send_counts, plan.receive_counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        plan: RowPlan = ctx.plan
        grad = grads[0]
        home = grad.new_zeros((plan.local_rows, *grad.shape[1:]))
        returned = grad[plan.return_order]
        home[plan.home_order] = _all_to_all(returned, plan.return_counts, plan.home_counts, ctx.group)
        return home, None, None


def _all_to_all(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1:
        return rows
    output = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(output, rows.contiguous(), receive, send, group=group)
    return output


def sum_vision_gradients(models: Iterable[torch.nn.Module], groups: ParallelGroups) -> None:
    """Sum the gradients of vision encoder and projector over TP, after the data-parallel reduction.

    Each TP rank encodes other tiles with its replica of the weights, so the gradient of a weight is the sum over ranks.
    (CP ranks are part of the data-parallel reduction.) Reads and writes `main_grad` where DDP set it, else `grad`; a
    missing gradient counts as zero. A collective over the TP group, on every rank of the stage.
    """
    if groups.tp_size == 1:
        return
    grads = []
    for parameter in itertools.chain.from_iterable(map(_vision_parameters, models)):
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


def _vision_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the trained parameters replicated on every TP rank, of a model wrapped or not: encoder and projector."""
    marks = ("vision_model.", "vision_projection.")
    return [p for name, p in model.named_parameters() if p.requires_grad and any(mark in name for mark in marks)]
