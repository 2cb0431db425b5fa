"""Feature rows of tiles on their way to the ranks that own them, with their gradients on the way back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.parallel.groups import ParallelGroups
from longvita.parallel.tile_sharing import RowPlan


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
        returned = grad[plan.return_order]
        home[plan.home_order] = _all_to_all(returned, plan.return_counts, plan.home_counts, ctx.group)
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
