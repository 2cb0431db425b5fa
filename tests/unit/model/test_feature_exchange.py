"""Each feature row reaches the ranks that need it once, and its gradient returns once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvita.model.feature_exchange import exchange_rows, plan_rows, tile_rounds
from longvita.parallel.sequence_layout import SequenceLayout, compact, undivided, zigzag
from longvita.parallel.tile_sharing import assign_tiles
from tests.distributed.helpers import run_distributed

ROWS = 3


@given(tiles=st.integers(0, 300), ranks=st.integers(1, 16), chunk=st.integers(1, 70))
def test_each_round_has_the_next_tiles_of_every_rank(tiles: int, ranks: int, chunk: int) -> None:
    owners = assign_tiles(tiles, ranks)
    rounds = tile_rounds(owners, chunk)
    for rank in range(ranks):
        own = rounds[owners == rank].tolist()
        assert own == [place // chunk for place in range(len(own))]


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[list[int], int, int]:
    size = draw(st.integers(1, 4))
    length = size * draw(st.integers(4, 12))
    count = draw(st.integers(0, length // ROWS))
    gaps = sorted(draw(st.lists(st.integers(0, length - count * ROWS), min_size=count, max_size=count)))
    return [gap + ROWS * index for index, gap in enumerate(gaps)], length, size


@settings(max_examples=60)
@given(layout=_layouts(), shift=st.integers(-4, 4))
def test_split_plan_covers_every_row_inside_once(layout: tuple[list[int], int, int], shift: int) -> None:
    starts, length, size = layout
    tile_starts, owners = torch.tensor(starts, dtype=torch.int64) + shift, assign_tiles(len(starts), size)
    plans = [plan_rows(tile_starts, owners, ROWS, undivided(length, size), _groups(r, size, size)) for r in range(size)]
    expected = [p + shift for s in starts for p in range(s, s + ROWS) if 0 <= p + shift < length]
    slice_length = length // size
    received = [r * slice_length + p for r, plan in enumerate(plans) for p in plan.positions.tolist()]
    assert sorted(received) == expected
    for sender in range(size):
        for receiver in range(size):
            assert plans[sender].send_counts[receiver] == plans[receiver].receive_counts[sender]


def _groups(rank: int, size: int, tp_size: int) -> SimpleNamespace:
    return SimpleNamespace(vision_rank=rank, vision_size=size, tp_size=tp_size)


def _exchange(rank: int, size: int, split: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each feature row holds its own position; the loss weighs each position by itself squared."""
    length, starts = 16, torch.tensor([-1, 3, 6, 11, 14])
    owners = assign_tiles(len(starts), size)
    layout = undivided(length, size if split else 1)
    plan = plan_rows(starts, owners, ROWS, layout, _groups(rank, size, size))
    positions = (starts[owners == rank][:, None] + torch.arange(ROWS)).reshape(-1)
    rows = positions[:, None].double().requires_grad_()
    received = exchange_rows(rows, plan, torch.distributed.group.WORLD)
    offset = rank * length // size if split else 0
    weights = (plan.positions + offset).double()[:, None] ** 2
    (received * weights).sum().backward()
    return received.detach()[:, 0], plan.positions + offset, torch.stack([positions.double(), rows.grad[:, 0]])


@pytest.mark.parametrize("split", [True, False], ids=["sequence-parallel", "replicated"])
def test_rows_and_their_gradients_arrive(split: bool) -> None:
    for received, positions, home in run_distributed(_exchange, 2, split):
        assert torch.equal(received, positions.double())
        source, gradient = home
        inside = (source >= 0) & (source < 16)
        assert torch.equal(gradient, torch.where(inside, source**2, 0.0))


DOCUMENTS = [9, 40, 12, 3]
TILES = torch.tensor([2, 9, 20, 33, 46, 49, 55])
"""Places of tiles among the documents' tokens; none crosses a document's end."""


def _exchange_over_cp(rank: int, size: int, tp_size: int, build, shared_out: bool) -> dict[str, torch.Tensor]:
    """As above over TP x CP; every rank's loss is its share of the whole, as it is for the rows that TP ranks share."""
    layout: SequenceLayout = build(DOCUMENTS, size // tp_size, tp_size if shared_out else 1)
    owners = assign_tiles(len(TILES), size)
    plan = plan_rows(TILES, owners, ROWS, layout, _groups(rank, size, tp_size))
    tokens = (TILES[owners == rank][:, None] + torch.arange(ROWS)).reshape(-1)
    rows = tokens[:, None].double().requires_grad_()
    received = exchange_rows(rows, plan, torch.distributed.group.WORLD)
    held = layout.tokens(rank // tp_size)
    if shared_out:
        held = held.chunk(tp_size)[rank % tp_size]
    expected = held[plan.positions]
    (received * expected.double()[:, None] ** 2).sum().backward()
    return {
        "received": received.detach()[:, 0],
        "expected": expected,
        "own": tokens,
        "gradients": rows.grad[:, 0],
        "wanted": held[torch.isin(held, (TILES[:, None] + torch.arange(ROWS)).reshape(-1))],
    }


@pytest.mark.parametrize("build", [zigzag, compact])
@pytest.mark.parametrize(
    ("size", "tp_size", "shared_out"),
    [(2, 1, False), (3, 1, False), (4, 2, True), (4, 2, False)],
    ids=["CP2", "CP3", "TP2 x CP2 + SP", "TP2 x CP2"],
)
def test_rows_reach_the_context_parallel_rank_that_holds_them(size: int, tp_size: int, shared_out: bool, build) -> None:
    for result in run_distributed(_exchange_over_cp, size, tp_size, build, shared_out):
        assert torch.equal(result["received"], result["expected"].double())
        assert torch.equal(result["expected"].sort().values, result["wanted"].sort().values), "each row that it holds"
        # Where all TP ranks have a row they have one gradient of it, and it comes home once.
        assert torch.equal(result["gradients"], result["own"].double() ** 2)
