"""Attention over a sequence that is split over processes equals attention in one, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from longvita.parallel.context_parallel.plan import plan_ring
from longvita.parallel.context_parallel.ring import ring_attention
from longvita.parallel.placement import compact
from longvita.parallel.sequence_layout import SequenceLayout, zigzag
from longvita.platforms.attention import FlashKernel, attend_documents
from tests.distributed.helpers import run_distributed

HEADS, GROUPS, DIM = 6, 2, 16
TOLERANCE = 1e-5
"""Absolute, of values and gradients of order one."""
LENGTHS = {
    "one document": [257],
    "packed": [90, 1, 300, 17, 17, 8, 64],
    "long and short": [700, 3, 40, 25],
}


def whole_tensors(lengths: list[int]) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    total = sum(lengths)
    return [torch.randn(total, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS, HEADS)]


def local_rows(layout: SequenceLayout, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of this rank that hold a token, index of that token in the whole sequence)."""
    documents, positions = layout.to_positions(rank)
    starts = torch.tensor([0, *layout.lengths]).cumsum(0)
    lengths = torch.tensor([*layout.lengths, 0])
    rows = torch.nonzero((documents >= 0) & (positions < lengths[documents]))[:, 0]
    return rows, starts[documents[rows]] + positions[rows]


def attend_split(rank: int, world: int, build, lengths: list[int]) -> list[torch.Tensor]:
    layout = build(lengths, world)
    rows, tokens = local_rows(layout, rank)
    local = [torch.zeros(layout.local_length, *x.shape[1:]) for x in whole_tensors(lengths)]
    for part, x in zip(local, whole_tensors(lengths), strict=True):
        part[rows] = x[tokens]
    q, k, v, grad = local
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = ring_attention(*inputs, plan_ring(layout, rank), DIM**-0.5, FlashKernel(), dist.group.WORLD)
    out.backward(grad)
    whole = [torch.zeros(sum(lengths), *x.shape[1:]) for x in (out, *inputs)]
    for x, part in zip(whole, (out.detach(), *(x.grad for x in inputs)), strict=True):
        x[tokens] = part[rows]
        dist.all_reduce(x)
    return whole


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("build", [zigzag, compact], ids=["zigzag", "compact"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ring_equals_one_process(world, build, lengths):
    q, k, v, grad = whole_tensors(lengths)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    out = attend_documents(*inputs, bounds, DIM**-0.5)
    out.backward(grad)
    expected = [out.detach(), *(x.grad for x in inputs)]
    for found in run_distributed(attend_split, world, build, lengths):
        for name, one, split in zip(("out", "dq", "dk", "dv"), expected, found, strict=True):
            difference = float((one - split).abs().max())
            assert difference < TOLERANCE, (name, difference)
