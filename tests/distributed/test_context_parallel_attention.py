"""Attention over a sequence that is split over processes equals attention in one, forward and backward."""

from __future__ import annotations

import types

import pytest
import torch
import torch.distributed as dist

from longvita.attention.ring import plan_ring, ring_attention
from longvita.attention.ulysses import ulysses_attention
from longvita.parallel.sequence_layout import SequenceLayout, compact, sliced, zigzag
from longvita.platforms.cpu.attention import FlashKernel, attend_documents
from tests.distributed.helpers import run_distributed

DIM = 16
TOLERANCE = 1e-5
"""Absolute, of values and gradients of order one."""
LENGTHS = {
    "one document": [257],
    "packed": [90, 1, 300, 17, 17, 8, 64],
    "long and short": [700, 3, 40, 25],
}


def whole_tensors(lengths: list[int], heads: int, groups: int) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    total = sum(lengths)
    return [torch.randn(total, number, DIM, generator=generator) for number in (heads, groups, groups, heads)]


def local_rows(layout: SequenceLayout, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of this rank that hold a token, index of that token in the whole sequence)."""
    documents, positions = layout.to_positions(rank)
    starts = torch.tensor([0, *layout.lengths]).cumsum(0)
    lengths = torch.tensor([*layout.lengths, 0])
    rows = torch.nonzero((documents >= 0) & (positions < lengths[documents]))[:, 0]
    return rows, starts[documents[rows]] + positions[rows]


def ring_of_ulysses(q, k, v, ring_layout: SequenceLayout, rank: int, world: int, ulysses: int) -> torch.Tensor:
    """Attention with runs of `ulysses` ranks that trade rows for heads, and a ring over the runs."""
    runs = [dist.new_group(list(range(start, start + ulysses))) for start in range(0, world, ulysses)]
    rings = [dist.new_group(list(range(place, world, ulysses))) for place in range(ulysses)]
    group = rings[rank % ulysses]
    plan = plan_ring(ring_layout, group.rank())
    return ulysses_attention(
        q,
        k,
        v,
        lambda *rows: ring_attention(*rows, plan, DIM**-0.5, FlashKernel(), group),
        runs[rank // ulysses],
    )


def attend_split(rank: int, world: int, ulysses: int, build, lengths: list[int], heads: int, groups: int):
    """Output and gradients of the whole sequence, put together from all ranks."""
    ring_layout = build(lengths, world // ulysses, ulysses)
    layout = sliced(ring_layout, ulysses)
    rows, tokens = local_rows(layout, rank)
    whole = whole_tensors(lengths, heads, groups)
    local = [torch.zeros(layout.local_length, *x.shape[1:]) for x in whole]
    for part, x in zip(local, whole, strict=True):
        part[rows] = x[tokens]
    q, k, v, grad = local
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = ring_of_ulysses(*inputs, ring_layout, rank, world, ulysses)
    out.backward(grad)
    joined = [torch.zeros(sum(lengths), *x.shape[1:]) for x in (out, *inputs)]
    for x, part in zip(joined, (out.detach(), *(x.grad for x in inputs)), strict=True):
        x[tokens] = part[rows]
        dist.all_reduce(x)
    return joined


def check(world: int, ulysses: int, build, lengths: list[int], heads: int, groups: int) -> None:
    q, k, v, grad = whole_tensors(lengths, heads, groups)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    out = attend_documents(*inputs, bounds, DIM**-0.5)
    out.backward(grad)
    expected = [out.detach(), *(x.grad for x in inputs)]
    for found in run_distributed(attend_split, world, ulysses, build, lengths, heads, groups):
        for name, one, split in zip(("out", "dq", "dk", "dv"), expected, found, strict=True):
            difference = float((one - split).abs().max())
            assert difference < TOLERANCE, (name, difference)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("build", [zigzag, compact])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ring_equals_one_process(world, build, lengths):
    check(world, 1, build, lengths, heads=6, groups=2)


@pytest.mark.parametrize("build", [zigzag, compact])
@pytest.mark.parametrize(
    ("world", "heads", "groups"),
    [(2, 4, 4), (2, 6, 2), (2, 4, 1), (4, 8, 2), (3, 6, 2), (2, 6, 3), (3, 12, 4)],
    ids=lambda value: str(value),
)
def test_ulysses_equals_one_process(world, heads, groups, build):
    """More groups of keys and values than ranks, as many, fewer, and numbers that divide unevenly."""
    check(world, world, build, LENGTHS["packed"], heads, groups)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("build", [zigzag, compact])
def test_a_ring_of_ulysses_equals_one_process(build, lengths):
    check(4, 2, build, lengths, heads=4, groups=2)


def test_ulysses_needs_heads_that_divide():
    rows, three = torch.zeros(10, 4, DIM), types.SimpleNamespace(size=lambda: 3)
    with pytest.raises(ValueError, match="4 heads do not divide over 3 ranks of Ulysses attention"):
        ulysses_attention(rows, rows[:, :2], rows[:, :2], lambda q, k, v: q, three)
