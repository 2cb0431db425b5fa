"""Plan of ring attention: which keys and values travel between ranks, and which queries attend to them.

A pure function of the sequence layout. In step s a rank sends to the rank s places after it, and receives from the rank
s places before it, the rows of documents that both hold, as far as the receiver's queries attend to them. No causal
mask is computed between ranks, a document on one rank sends nothing, and no row travels that no query needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

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
    own = _by_document(layout, rank)
    bounds = [0]
    for pieces in own.values():
        bounds.append(bounds[-1] + sum(piece.length for piece in pieces))
    steps = []
    for shift in range(1, size):
        source, destination = (rank - shift) % size, (rank + shift) % size
        send = _needed(own, _by_document(layout, destination))
        theirs = _by_document(layout, source)
        arriving = _needed(theirs, own)
        steps.append(
            RingStep(
                source,
                destination,
                _joined([(layout.rows[piece], layout.rows[piece] + piece.length) for piece in send]),
                sum(piece.length for piece in arriving),
                _blocks(layout, own, arriving),
            )
        )
    return RingPlan(tuple(bounds), tuple(steps))


def _by_document(layout: SequenceLayout, rank: int) -> dict[int, list[DocumentPiece]]:
    return _grouped(layout.of_rank(rank))


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
    for document, keys in _grouped(arriving).items():
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


def _grouped(pieces: list[DocumentPiece]) -> dict[int, list[DocumentPiece]]:
    groups: dict[int, list[DocumentPiece]] = {}
    for piece in pieces:
        groups.setdefault(piece.document, []).append(piece)
    return groups


def _joined(rows: list[Rows]) -> tuple[Rows, ...]:
    joined: list[Rows] = []
    for start, end in rows:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return tuple(joined)
