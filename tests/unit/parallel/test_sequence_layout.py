"""Layouts of packed sequences: every position lands once, maps there and back, and work and tokens are balanced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvita.parallel.sequence_layout import (
    MAX_IMBALANCE,
    DocumentPiece,
    SequenceLayout,
    compact,
    imbalance,
    sliced,
    zigzag,
)
from tests.unit.parallel.moved_tokens import moved_tokens

LENGTHS = st.lists(st.integers(0, 300), min_size=1, max_size=12)
LONG = st.lists(st.integers(20_000, 200_000), min_size=1, max_size=4)
SIZES = st.integers(1, 7)


def compact_in_slices(lengths: list[int], cp_size: int, tp_size: int = 1) -> SequenceLayout:
    """Every place of the compact layout shared by as many ranks as can be, up to three."""
    parts = next(parts for parts in (3, 2, 1) if cp_size % parts == 0)
    return sliced(compact(lengths, cp_size // parts, parts * tp_size), parts)


BUILDERS = [zigzag, compact, compact_in_slices]


def every_position(layout: SequenceLayout) -> tuple[torch.Tensor, torch.Tensor]:
    documents = [torch.full((length,), document) for document, length in enumerate(layout.lengths)]
    positions = [torch.arange(length) for length in layout.lengths]
    return torch.cat(documents), torch.cat(positions)


@pytest.mark.parametrize("build", BUILDERS)
@given(lengths=LENGTHS, cp_size=SIZES, tp_size=st.integers(1, 4))
@settings(max_examples=60)
def test_every_position_has_one_row_and_is_found_from_it(build, lengths, cp_size, tp_size):
    layout = build(lengths, cp_size, tp_size)
    documents, positions = every_position(layout)
    cp_rank, tp_rank, row = layout.to_rows(documents, positions)
    slice_length = layout.local_length // tp_size
    places = (cp_rank * tp_size + tp_rank) * slice_length + row
    assert len(places.unique()) == len(documents) == sum(lengths)
    assert bool((row < slice_length).all())
    for rank in range(cp_size):
        for part in range(tp_size):
            there = (cp_rank == rank) & (tp_rank == part)
            found_documents, found_positions = layout.to_positions(rank, part)
            assert len(found_documents) == slice_length
            assert torch.equal(found_documents[row[there]], documents[there])
            assert torch.equal(found_positions[row[there]], positions[there])


@pytest.mark.parametrize("build", [zigzag, compact])
@given(lengths=LONG, cp_size=SIZES)
@settings(max_examples=30)
def test_work_on_long_documents_is_even(build, lengths, cp_size):
    layout = build(lengths, cp_size)
    assert imbalance(layout) < (1.01 if build is zigzag else MAX_IMBALANCE + 0.001)


@given(lengths=LENGTHS, cp_size=SIZES, tp_size=st.integers(1, 4))
def test_zigzag_pads_each_document_and_gives_each_rank_equal_work(lengths, cp_size, tp_size):
    layout = zigzag(lengths, cp_size, tp_size)
    padded = sum(-(-length // (2 * cp_size)) * 2 * cp_size for length in lengths)
    assert layout.used == [layout.local_length] * cp_size
    assert 0 <= layout.local_length - padded // cp_size < 2 * tp_size
    ends = {piece.document: piece.end for piece in layout.pieces}
    assert all(end % (2 * cp_size) == 0 for end in ends.values())
    assert len({layout.work(rank) for rank in range(cp_size)}) == 1


@given(lengths=LENGTHS, cp_size=SIZES, tp_size=st.integers(1, 4))
def test_compact_pads_no_document_and_spreads_tokens_evenly(lengths, cp_size, tp_size):
    layout = compact(lengths, cp_size, tp_size)
    assert sum(layout.used) == sum(lengths)
    assert layout.local_length == -(-sum(lengths) // (cp_size * tp_size)) * tp_size


@pytest.mark.parametrize("cp_size", [2, 3, 4, 6])
def test_many_equal_documents_send_nothing(cp_size):
    layout = compact([500] * 4 * cp_size, cp_size)
    assert moved_tokens(layout) == 0
    assert imbalance(layout) == 1


def test_one_document_is_zigzag_over_all():
    layout = compact([1200], 3)
    assert layout.pieces == zigzag([1200], 3).pieces
    # Rank 0 needs what stands before its last chunk and is not its own, and so on inwards.
    assert moved_tokens(layout) == 800 + 600 + 400


def test_only_the_long_document_among_short_ones_is_cut():
    layout = compact([30_000] + [500] * 60, 4)
    assert {piece.document for piece in layout.pieces if piece.length < layout.lengths[piece.document]} == {0}
    assert moved_tokens(layout) == moved_tokens(zigzag([30_000], 4))
    assert imbalance(layout) < MAX_IMBALANCE


def test_unknown_positions_are_refused():
    layout = zigzag([10, 0, 5], 2)
    # The padding of a document has rows; what lies beyond it, and a document without tokens, has none.
    assert layout.to_rows(torch.tensor([0]), torch.tensor([11]))[0].tolist() == [0]
    for document, position in ((0, 12), (1, 0), (2, -1), (3, 0), (-1, 0)):
        with pytest.raises(IndexError, match=f"document {document} has no position {position}"):
            layout.to_rows(torch.tensor([document]), torch.tensor([position]))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([DocumentPiece(0, 0, 4, 0)], "not covered"),
        ([DocumentPiece(0, 0, 4, 0), DocumentPiece(0, 5, 8, 1)], "does not start where"),
        ([DocumentPiece(0, 0, 8, 2)], "not on one of 2"),
        ([DocumentPiece(0, 0, 8, 0)], "must be a multiple of 1 and hold 8 rows"),
    ],
)
def test_pieces_that_do_not_cover_the_documents_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        SequenceLayout((8,), tuple(pieces), 2, 1, 4)
