"""The logits-masked head: positions that carry loss are selected first, then scored chunk by chunk.

Neither the logits of all positions nor those of all selected positions ever exist at once, at any TP.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows against a vocabulary-parallel weight.

    The gradients are computed in the forward pass, chunk by chunk while its logits are there, and scaled by the
    incoming gradient in the backward pass, in place: that passes once. It holds one gradient of the weight but spares a
    second product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: dist.ProcessGroup,
        chunk: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        need_rows, need_weight = (differentiate and needed for needed in ctx.needs_input_grad[:2])
        grad_rows = torch.zeros_like(rows) if need_rows else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        first = group.rank() * len(weight)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(rows[part], weight.t()).float()
            losses[part], index, outside = _cross_entropy(logits, targets[part] - first, group)
            if not (need_rows or need_weight):
                continue
            # `logits` holds the probabilities now; subtracting the one-hot target makes it the gradient.
            logits[torch.arange(len(logits), device=logits.device), index] -= (~outside).float()
            gradient = logits.to(rows.dtype)
            if grad_rows is not None:
                torch.mm(gradient, weight, out=grad_rows[part])
            if grad_weight is not None and gradient.dtype == grad_weight.dtype:
                # Without a second tensor as large as the weight. (Torch's FLOP counter does not know addmm_.)
                torch.addmm(grad_weight, gradient.t(), rows[part], out=grad_weight)
            elif grad_weight is not None:
                grad_weight += torch.mm(gradient.t(), rows[part])
        if grad_rows is not None and group.size() > 1:
            dist.all_reduce(grad_rows, group=group)
        ctx.gradients = grad_rows, grad_weight
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are given away by the first backward pass; compute it anew")
        grad_rows, grad_weight = ctx.gradients
        ctx.gradients = None
        # In place: a copy of the weight's gradient would be the largest tensor of the head.
        if grad_rows is not None:
            grad_rows.mul_(grads[0])
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grads[0]).to(ctx.weight_dtype)
        return grad_rows, grad_weight, None, None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [m] of fp32 logits [m, v / TP], which turn into probabilities in place.

    `targets` count from this rank's first row of the vocabulary. Returns the losses, the targets held here (0 where the
    target is another rank's) and which targets are another rank's.
    """
    outside = (targets < 0) | (targets >= logits.shape[1])
    index = targets.masked_fill(outside, 0)
    highest = logits.amax(dim=1)
    if group.size() > 1:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    logits -= highest[:, None]
    chosen = logits.gather(1, index[:, None])[:, 0].masked_fill(outside, 0.0)
    logits.exp_()
    sums = torch.stack([logits.sum(dim=1), chosen])
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    logits /= sums[0][:, None]
    return sums[0].log() - sums[1], index, outside


def chunked_cross_entropy(
    rows: Tensor, weight: Tensor, targets: Tensor, group: dist.ProcessGroup, chunk: int
) -> tuple[Tensor, Tensor]:
    """Sum of the losses (fp32 scalar, differentiable) and the losses [m] (fp32, for the log alone).

    rows [m, h]: hidden states of the selected positions, the same on every TP rank. weight [v / TP, h]: this rank's
    rows of the output layer. targets [m]: token ids. Sum rather than mean: it is divided by the loss tokens of the
    global batch later, so that the loss is one number at every layout.
    """
    if len(rows) == 0:
        # Keeps the graph whole, so that every parameter has a gradient and every rank takes part in the reductions.
        return rows.float().sum() + 0.0 * weight.float().sum(), rows.new_zeros(0, dtype=torch.float32)
    return _ChunkedCrossEntropy.apply(rows, weight, targets, group, chunk, torch.is_grad_enabled())


class _GatherSelected(torch.autograd.Function):
    """Selected rows of every TP rank's slice, on every TP rank. The gradient that comes back is the same on every rank
    (the head has summed it over TP), so each takes its own part.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.start, ctx.count = sum(counts[: group.rank()]), len(rows)
        width = max(counts)
        padded = rows.new_zeros((width, rows.shape[1]))
        padded[: len(rows)] = rows
        gathered = rows.new_empty((group.size() * width, rows.shape[1]))
        dist.all_gather_into_tensor(gathered, padded, group=group)
        return torch.cat([gathered[r * width : r * width + count] for r, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.start + ctx.count], None, None


def select_rows(hidden: Tensor, positions: Tensor, group: dist.ProcessGroup, sequence_parallel: bool) -> Tensor:
    """Hidden states at `positions`: [m, h], the same on every TP rank.

    hidden [t, 1, h], or this rank's [t / TP, 1, h] with sequence parallel; positions [m], ascending, of the whole micro
    batch. The gradient handed back must be the same on every TP rank.
    """
    hidden = hidden.flatten(0, 1)
    if not sequence_parallel or group.size() == 1 or len(positions) == 0:
        return hidden[positions]
    length = len(hidden)
    owners = positions.div(length, rounding_mode="floor")
    counts = torch.bincount(owners, minlength=group.size()).tolist()
    own = hidden[positions[owners == group.rank()] - group.rank() * length]
    return _GatherSelected.apply(own, counts, group)


def gathered_logits(rows: Tensor, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Logits [m, v] in fp32 of a few rows [m, h], whole on every TP rank; for generation and checks, no gradient."""
    local = torch.mm(rows, weight.t()).float()
    if group.size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(group.size())]
    dist.all_gather(parts, local.contiguous(), group=group)
    return torch.cat(parts, dim=1)
