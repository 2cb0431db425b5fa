"""The plan of the ring: every query meets every key before it once, and nothing else is computed or sent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvita.attention.ring import RingPlan, RingStep, plan_ring
from longvita.parallel.sequence_layout import SequenceLayout, compact, zigzag
from tests.unit.parallel.moved_tokens import moved_tokens


def index_of_rows(layout: SequenceLayout, rank: int) -> torch.Tensor:
    """[rows] which position of the whole padded sequence each row of a rank holds."""
    documents, positions = layout.to_positions(rank)
    return documents * 1000 + positions


def received(layout: SequenceLayout, step: RingStep, rank: int) -> torch.Tensor:
    theirs = plan_ring(layout, step.source).steps
    (sending,) = [other for other in theirs if other.destination == rank]
    rows = index_of_rows(layout, step.source)
    parts = [rows[start:end] for start, end in sending.send]
    found = torch.cat(parts) if parts else rows[:0]
    assert len(found) == step.receive, "what one rank sends is what the other expects"
    return found


def sent_rows(plan: RingPlan) -> int:
    """Rows whose keys and values a rank sends in a forward pass."""
    return sum(end - start for step in plan.steps for start, end in step.send)


@pytest.mark.parametrize("build", [zigzag, compact])
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), cp_size=st.integers(1, 5))
@settings(max_examples=40)
def test_every_query_meets_every_key_before_it_once(build, lengths, cp_size):
    layout = build(lengths, cp_size)
    met: dict[tuple[int, int], int] = {}
    for rank in range(cp_size):
        plan = plan_ring(layout, rank)
        own = index_of_rows(layout, rank)
        for start, end in zip(plan.bounds, plan.bounds[1:], strict=False):
            for row in range(start, end):
                for key in own[start : row + 1].tolist():
                    met[int(own[row]), key] = met.get((int(own[row]), key), 0) + 1
        for step in plan.steps:
            theirs = received(layout, step, rank)
            for block in step.blocks:
                for query in own[slice(*block.queries)].tolist():
                    for key in theirs[slice(*block.keys)].tolist():
                        met[query, key] = met.get((query, key), 0) + 1
    ends: dict[int, int] = {}
    for piece in layout.pieces:
        ends[piece.document] = piece.end
    wanted = {
        (document * 1000 + query, document * 1000 + key): 1
        for document, end in ends.items()
        for query in range(end)
        for key in range(query + 1)
    }
    assert met == wanted


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=6), cp_size=st.integers(1, 5))
@settings(max_examples=40)
def test_no_more_is_sent_than_is_needed(lengths, cp_size):
    layout = compact(lengths, cp_size)
    assert sum(sent_rows(plan_ring(layout, rank)) for rank in range(cp_size)) == moved_tokens(layout)


@pytest.mark.parametrize("cp_size", [2, 3, 4, 8])
def test_a_zigzag_document_takes_one_block_a_step(cp_size):
    layout = zigzag([160 * cp_size], cp_size)
    for rank in range(cp_size):
        plan = plan_ring(layout, rank)
        assert [len(step.blocks) for step in plan.steps] == [1] * (cp_size - 1)
        # Less than a ring that passes on every rank's whole keys and values.
        assert sent_rows(plan) <= (cp_size - 1) * layout.local_length
