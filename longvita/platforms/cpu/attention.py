"""Core attention of the CPU platform, on torch's flash kernel for CPUs.

The kernel returns the output and the logsumexp of each row, and supports fewer key and value heads than query heads
(GQA) without copies.

For short documents the calls cost more than the computation. Neighbours of equal length form a batch without a copy;
other short documents of similar lengths are copied into a batch and padded at their ends. Under a causal mask no token
attends to a later one, so the padding changes no result, and its own rows are dropped.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from longvita.attention.core import CoreAttention, checked
from longvita.attention.kernel import AttentionKernel

LENGTH_CLASSES = (8, 16, 24, 32, 48, 64, 96, 128)
"""A short document shares a batch with the others of its class, up to one of these lengths. Longer ones get their own
calls."""
MAX_FOLDED_ROWS = 16
"""Maximum number of query rows whose heads are folded. With more rows the kernel reuses keys and values anyway."""


def attend_documents(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> Tensor:
    """Causal attention inside each document: q [t, heads, d], k and v [t, groups, d] to [t, heads, d].

    bounds: starts of the documents, then t. bf16 is computed in fp32. Raises ValueError if bounds do not fit t.
    """
    plan = plan_documents(tuple(checked(bounds, len(q))))
    return _DocumentAttention.apply(q.float(), k.float(), v.float(), plan, scale).to(q.dtype)


def attend_batch(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention in each column of a batch: q [s, b, heads, d], k and v [s, b, groups, d] to [s, b, heads, d]."""
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.float().permute(1, 2, 0, 3) for x in (q, k, v)), 0.0, causal, scale=scale
    )
    return out.permute(2, 0, 1, 3).to(q.dtype)


class FlashKernel(AttentionKernel):
    """torch's flash kernel for CPUs."""

    @override
    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fp32: matrix products in bf16 are two hundred times slower."""
        return torch.float32

    @override
    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        if len(bounds) == 2 and len(q):
            out, lse = _forward(_heads_first(q), _heads_first(k), _heads_first(v), True, scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        plan = plan_documents(tuple(bounds))
        out, lses = _documents_forward(q, k, v, plan, scale)
        return out, plan.join([lse[..., None] for lse in lses])[..., 0]

    @override
    def causal_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: list[int], scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = plan_documents(tuple(bounds))
        lses = [group.take(lse[..., None])[..., 0].contiguous() for group in plan.groups]
        return _documents_backward(grad, q, k, v, out, lses, plan, scale)

    @override
    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
        if repeats == 1 or len(q) > MAX_FOLDED_ROWS:
            out, lse = _forward(_heads_first(q), _heads_first(k), _heads_first(v), False, scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        # The query heads of a group become rows of one head, so that keys and values are read once for all of them.
        folded = q.unflatten(1, (groups, repeats)).transpose(1, 2).flatten(0, 1)
        out, lse = self.full_forward(folded, k, v, scale)
        return _unfold(out, repeats), _unfold(lse, repeats)

    @override
    def full_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [_heads_first(x) for x in (grad, q, k, v, out)]
        parts = _backward(inputs, lse.transpose(0, 1)[None].contiguous(), False, scale)
        grad_q, grad_k, grad_v = (part[0].transpose(0, 1) for part in parts)
        return grad_q, grad_k, grad_v


class PackedAttention(CoreAttention):
    """CoreAttention on FlashKernel, which computes documents of similar lengths in one call."""

    kernel = FlashKernel()
    attend_documents = staticmethod(attend_documents)  # type: ignore[assignment]
    attend_batch = staticmethod(attend_batch)  # type: ignore[assignment]


def _unfold(x: Tensor, repeats: int) -> Tensor:
    """[t * repeats, groups, ..] to [t, groups * repeats, ..]."""
    return x.unflatten(0, (-1, repeats)).transpose(1, 2).flatten(1, 2)


class _DocumentAttention(torch.autograd.Function):
    """`attend_documents` as one autograd node: slicing outside of it would copy the full gradients per document."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: DocumentPlan, scale: float) -> Tensor:
        out, lses = _documents_forward(q, k, v, plan, scale)
        ctx.save_for_backward(q, k, v, out, *lses)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *lses = ctx.saved_tensors
        return *_documents_backward(grad_out, q, k, v, out, lses, ctx.plan, ctx.scale), None, None


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: DocumentPlan, scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Output [t, heads, d], and the logsumexps [documents, heads, length] of each group of the plan."""
    parts = [_forward(group.take(q), group.take(k), group.take(v), True, scale) for group in plan.groups]
    return plan.join([out for out, _ in parts]), [lse for _, lse in parts]


def _documents_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lses: list[Tensor], plan: DocumentPlan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    parts = []
    for group, lse in zip(plan.groups, lses, strict=True):
        inputs = [group.take(grad, zero_padding=True), *(group.take(x) for x in (q, k, v, out))]
        parts.append(_backward(inputs, lse, True, scale))
    grad_q, grad_k, grad_v = (plan.join(list(batches)) for batches in zip(*parts))
    return grad_q, grad_k, grad_v


def _heads_first(x: Tensor) -> Tensor:
    """[s, heads, d] to the kernel's [1, heads, s, d], without a copy."""
    return x.transpose(0, 1)[None]


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _backward(inputs: list[Tensor], lse: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; inputs: the output's gradient, q, k, v and the output."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, lse, 0.0, causal, scale=scale)


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of a batch.

    documents, length: shape of the batch. start: first token of adjacent documents that need no padding. For others,
    `rows` [documents * length] int64 is the token at each place of the batch, and `padding` [n] int64 are the places
    that repeat a document's last token.
    """

    documents: int
    length: int
    start: int = 0
    rows: Tensor | None = None
    padding: Tensor | None = None

    def take(self, x: Tensor, zero_padding: bool = False) -> Tensor:
        """The group's tokens of x [t, heads, d] as [documents, heads, length, d], without a copy if possible.

        zero_padding: for a gradient, which is zero in the padding.
        """
        if self.rows is None:
            batch = x[self.start : self.start + self.documents * self.length]
        else:
            batch = x.index_select(0, self.rows)
            if zero_padding and self.padding is not None:
                batch.index_fill_(0, self.padding, 0)
        return batch.unflatten(0, (self.documents, self.length)).transpose(1, 2)


@dataclass(frozen=True)
class DocumentPlan:
    """All documents of a sequence in groups.

    order: [t] int64, the place of each token in the concatenated batches; None if they are in order.
    """

    groups: tuple[DocumentGroup, ...]
    order: Tensor | None

    def join(self, batches: list[Tensor]) -> Tensor:
        """The groups' batches [documents, heads, length, d] as one sequence [t, heads, d], without padding."""
        tokens = [batch.transpose(1, 2).flatten(0, 1) for batch in batches]
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return joined if self.order is None else joined.index_select(0, self.order)


@functools.lru_cache(maxsize=8)
def plan_documents(bounds: tuple[int, ...]) -> DocumentPlan:
    """Groups of all documents. bounds: their starts, then the end of the last. Empty documents are left out."""
    runs = _equal_runs(bounds)
    classes: dict[int, list[tuple[int, int, int]]] = {}
    for run in runs:
        key = next((top for top in LENGTH_CLASSES if run[2] <= top), -run[0] - 1)
        classes.setdefault(key, []).append(run)
    groups = tuple(_group(members) for members in classes.values())
    if len(groups) == len(runs):
        return DocumentPlan(groups, order=None)
    return DocumentPlan(groups, _order(groups, bounds[-1]))


def _equal_runs(bounds: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Runs of neighbouring documents of equal length: (start, documents, length)."""
    runs: list[tuple[int, int, int]] = []
    for start, end in itertools.pairwise(bounds):
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, end - start)
        elif end > start:
            runs.append((start, 1, end - start))
    return runs


def _group(runs: list[tuple[int, int, int]]) -> DocumentGroup:
    if len(runs) == 1:
        return DocumentGroup(start=runs[0][0], documents=runs[0][1], length=runs[0][2])
    documents = [(start + i * length, length) for start, count, length in runs for i in range(count)]
    longest = max(length for _, length in documents)
    starts, lengths = torch.tensor(documents).T[..., None]
    offsets = torch.arange(longest)[None]
    rows = starts + torch.minimum(offsets, lengths - 1)
    padding = (offsets >= lengths).flatten().nonzero().flatten()
    return DocumentGroup(len(documents), longest, rows=rows.flatten(), padding=padding)


def _order(groups: tuple[DocumentGroup, ...], tokens: int) -> Tensor:
    """Place of each token in the concatenated batches."""
    rows, real = [], []
    for group in groups:
        size = group.documents * group.length
        rows.append(torch.arange(group.start, group.start + size) if group.rows is None else group.rows)
        real.append(torch.ones(size, dtype=torch.bool))
        if group.padding is not None:
            real[-1][group.padding] = False
    places = torch.cat(real).nonzero().flatten()
    order = torch.empty(tokens, dtype=torch.int64)
    order[torch.cat(rows)[places]] = places
    return order
