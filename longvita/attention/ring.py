"""Ring attention: keys and values travel, queries stay; partial results are merged exactly by their logsumexps.

With O, L the output and logsumexp over the keys so far, and o, l those of one more block,

    L' = log(exp L + exp l),    O' = exp(L - L') O + exp(l - L') o

(arXiv 2310.01889, arXiv 2205.14135). In the backward pass each block's probabilities are exp(scores - L) with the final
L: the kernel receives the final O and L and returns the block's part of the gradients. Gradients of keys and values
travel back to the rank that sent them. The next block travels while the current one is computed.

The plan is a pure function of the sequence layout: which keys and values travel between ranks, and which queries attend
to them. In step s a rank sends to the rank s places after it, and receives from the rank
s places before it, the rows of documents that both hold, as far as the receiver's queries attend to them. No causal
mask is computed between ranks, a document on one rank sends nothing, and no row travels that no query needs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kernel import AttentionKernel
from longvita.parallel.sequence_layout import DocumentPiece, SequenceLayout

Rows = tuple[int, int]
"""First row, and the row after the last."""


@dataclass(frozen=True)
class AttentionBlock:
    """Queries that all attend to all of some keys."""

    queries: Rows
    """Rows of this rank."""
    keys: Rows
    """Rows of the received keys and values."""


@dataclass(frozen=True)
class RingStep:
    """One rank's part in one step of the ring."""

    source: int
    """CP rank that keys and values are received from."""
    destination: int
    """CP rank that keys and values are sent to."""
    send: tuple[Rows, ...]
    """Rows of this rank that the destination needs, ascending; adjacent runs are joined."""
    receive: int
    """Number of rows received."""
    blocks: tuple[AttentionBlock, ...]
    """Attention over the received rows."""


@dataclass(frozen=True)
class RingPlan:
    """The steps of one rank."""

    bounds: tuple[int, ...]
    """First rows of this rank's parts of documents, then the row after the last. Each part is causal by itself. Rows
    after the last bound are padding.
    """
    steps: tuple[RingStep, ...]
    """Steps 1 to CP - 1."""


@functools.lru_cache(maxsize=64)
def plan_ring(layout: SequenceLayout, rank: int) -> RingPlan:
    """Return the plan of a CP rank."""
    size = layout.cp_size
    own = _by_document(layout.of_rank(rank))
    lengths = (sum(piece.length for piece in pieces) for pieces in own.values())
    bounds = itertools.accumulate(lengths, initial=0)
    steps = []
    for shift in range(1, size):
        source, destination = (rank - shift) % size, (rank + shift) % size
        send = _needed(own, _by_document(layout.of_rank(destination)))
        rows = _joined([(layout.rows[piece], layout.rows[piece] + piece.length) for piece in send])
        arriving = _needed(_by_document(layout.of_rank(source)), own)
        received = sum(piece.length for piece in arriving)
        steps.append(RingStep(source, destination, rows, received, _blocks(layout, own, arriving)))
    return RingPlan(tuple(bounds), tuple(steps))


def _by_document(pieces: list[DocumentPiece]) -> dict[int, list[DocumentPiece]]:
    """Group pieces, in the order of documents."""
    return {document: list(group) for document, group in itertools.groupby(pieces, lambda piece: piece.document)}


def _needed(held: dict[int, list[DocumentPiece]], wanting: dict[int, list[DocumentPiece]]) -> list[DocumentPiece]:
    """Return the held pieces that some query of the wanting rank attends to, in the order of rows."""
    needed = []
    for document, pieces in held.items():
        if document in wanting:
            last = wanting[document][-1].start
            needed += [piece for piece in pieces if piece.start < last]
    return needed


def _blocks(
    layout: SequenceLayout, own: dict[int, list[DocumentPiece]], arriving: list[DocumentPiece]
) -> tuple[AttentionBlock, ...]:
    """Pair each query piece with the received pieces before it in its document, in as few blocks as possible."""
    blocks: list[AttentionBlock] = []
    first = 0
    for document, keys in _by_document(arriving).items():
        previous: AttentionBlock | None = None
        for piece in own[document]:
            seen = sum(key.length for key in keys if key.start < piece.start)
            rows = layout.rows[piece], layout.rows[piece] + piece.length
            if not seen:
                continue
            if previous is not None and previous.keys == (first, first + seen):
                # This piece follows in the rows and attends to the same keys.
                blocks.pop()
                rows = previous.queries[0], rows[1]
            previous = AttentionBlock(rows, (first, first + seen))
            blocks.append(previous)
        first += sum(key.length for key in keys)
    return tuple(blocks)


def _joined(rows: list[Rows]) -> tuple[Rows, ...]:
    joined: list[Rows] = []
    for start, end in rows:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return tuple(joined)


def merge_into(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Merge attention over more keys into (out [t, heads, d], lse [t, heads]), in place."""
    total = lse.logaddexp(more_lse)
    out.mul_((lse - total).exp_()[..., None]).addcmul_(more_out, (more_lse - total).exp_()[..., None])
    lse.copy_(total)


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: RingPlan, scale: float, kernel: AttentionKernel, group: dist.ProcessGroup
) -> Tensor:
    """Attend causally inside each document of a sequence that is split over `group`.

    q [t, heads, d], k and v [t, groups, d]: this rank's rows, in the order of its SequenceLayout. Returns
    [t, heads, d]; rows of padding are zero. Parts are merged in fp32. A collective over the group, backward pass
    included.
    """
    dtype = kernel.compute_dtype(q.dtype)
    return _RingAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), plan, scale, kernel, group).to(q.dtype)


def ring_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: RingPlan, scale: float, kernel: AttentionKernel, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Run the forward pass of `ring_attention` without autograd: out [t, heads, d] and lse [t, heads] in fp32."""
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = out.new_zeros(q.shape[:2])
    arriving = _Arriving(plan.steps, torch.stack((k, v)), group)
    used = plan.bounds[-1]
    if used:
        own = slice(used)
        out[own], lse[own] = kernel.causal_forward(q[own], k[own], v[own], list(plan.bounds), scale)
    for step in plan.steps:
        theirs = arriving.wait()
        for block in step.blocks:
            queries, keys = slice(*block.queries), slice(*block.keys)
            part, part_lse = kernel.full_forward(q[queries], theirs[0, keys], theirs[1, keys], scale)
            merge_into(out[queries], lse[queries], part, part_lse)
    return out, lse


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: RingPlan, scale: float, kernel: AttentionKernel, group: Any
    ) -> Tensor:
        out, lse = ring_forward(q, k, v, plan, scale, kernel, group)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale, ctx.kernel, ctx.group = plan, scale, kernel, group
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        plan, scale, kernel, grad = ctx.plan, ctx.scale, ctx.kernel, grads[0]
        grad_q = torch.zeros_like(q, dtype=torch.float32)
        grad_pairs = grad_q.new_zeros((2, *k.shape))
        arriving = _Arriving(plan.steps, torch.stack((k, v)), ctx.group)
        returning = _Returning(grad_pairs, ctx.group)
        used = plan.bounds[-1]
        if used:
            own = slice(used)
            grad_q[own], grad_pairs[0, own], grad_pairs[1, own] = kernel.causal_backward(
                grad[own], q[own], k[own], v[own], out[own], lse[own], list(plan.bounds), scale
            )
        for step in plan.steps:
            theirs = arriving.wait()
            grad_theirs = torch.zeros_like(theirs, dtype=torch.float32)
            for block in step.blocks:
                queries, keys = slice(*block.queries), slice(*block.keys)
                part, grad_key, grad_value = kernel.full_backward(
                    grad[queries], q[queries], theirs[0, keys], theirs[1, keys], out[queries], lse[queries], scale
                )
                grad_q[queries] += part
                grad_theirs[0, keys] += grad_key
                grad_theirs[1, keys] += grad_value
            returning.add_last()
            returning.send(step, grad_theirs)
        returning.add_last()
        return grad_q, grad_pairs[0], grad_pairs[1], None, None, None, None


class _Transfer:
    """One tensor being sent and another being received. Empty tensors are not sent."""

    def __init__(self, outgoing: Tensor, to: int, incoming: Tensor, source: int, group: dist.ProcessGroup):
        self.incoming = incoming
        # The operations keep the tensors alive while they travel.
        self._operations = []
        if outgoing.numel():
            self._operations.append(dist.P2POp(dist.isend, outgoing, group=group, group_peer=to))
        if incoming.numel():
            self._operations.append(dist.P2POp(dist.irecv, incoming, group=group, group_peer=source))
        self._works = dist.batch_isend_irecv(self._operations) if self._operations else []

    def wait(self) -> Tensor:
        """Return the received tensor."""
        for work in self._works:
            work.wait()
        return self.incoming


class _Arriving:
    """Keys and values received in each step; those of the next step travel while one step's are used."""

    def __init__(self, steps: Sequence[RingStep], pairs: Tensor, group: dist.ProcessGroup):
        """pairs: this rank's keys and values [2, t, groups, d]."""
        self._pairs, self._group = pairs, group
        self._steps: Iterator[RingStep] = iter(steps)
        self._start_next()

    def wait(self) -> Tensor:
        """Return the keys and values [2, rows, groups, d] of the next step."""
        theirs = self._pending.wait()
        self._start_next()
        return theirs

    def _start_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            outgoing = torch.cat([self._pairs[:, :0], *(self._pairs[:, slice(*rows)] for rows in step.send)], dim=1)
            incoming = self._pairs.new_empty((2, step.receive, *self._pairs.shape[2:]))
            self._pending = _Transfer(outgoing, step.destination, incoming, step.source, self._group)


class _Returning:
    """Gradients of keys and values returned to their ranks, each while the next step is computed."""

    def __init__(self, grad_pairs: Tensor, group: dist.ProcessGroup):
        """grad_pairs: gradients of this rank's keys and values [2, t, groups, d], to which other ranks' are added."""
        self._grad_pairs, self._group = grad_pairs, group
        self._pending: tuple[tuple[Rows, ...], _Transfer] | None = None

    def send(self, step: RingStep, grad_theirs: Tensor) -> None:
        """Start to send a step's gradients to its source, and to receive those of the rows sent in that step."""
        rows = sum(end - start for start, end in step.send)
        incoming = self._grad_pairs.new_empty((2, rows, *self._grad_pairs.shape[2:]))
        transfer = _Transfer(grad_theirs, step.source, incoming, step.destination, self._group)
        self._pending = step.send, transfer

    def add_last(self) -> None:
        """Wait for the last transfer and add the received gradients."""
        if self._pending is None:
            return
        sent, transfer = self._pending
        parts = transfer.wait().split([end - start for start, end in sent], dim=1)
        for (start, end), part in zip(sent, parts, strict=True):
            self._grad_pairs[:, start:end] += part
        self._pending = None
