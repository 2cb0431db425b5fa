"""Which keys and values travel between context-parallel ranks, and which queries attend to them: from the layout alone.

In step s a rank sends to the rank s places after it, and receives from the rank s places before it, the rows of
documents that both hold, as far as the receiver's queries see them. So a causal mask is never computed, a document that
is whole on one rank sends nothing, and no row travels that no query needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from longvita.parallel.sequence_layout import Piece, SequenceLayout

Rows = tuple[int, int]
"""First row, and the row after the last."""


@dataclass(frozen=True)
class Block:
    """Queries that all attend to all of some keys."""

    queries: Rows
    """Rows of this rank."""
    keys: Rows
    """Rows of what was received."""


@dataclass(frozen=True)
class Step:
    """What one rank does in one step of the ring."""

    source: int
    """CP rank that keys and values come from."""
    destination: int
    """CP rank that they go to."""
    send: tuple[Rows, ...]
    """Rows of this rank that the destination needs, ascending; neighbours are put together."""
    receive: int
    """Rows that come from the source."""
    blocks: tuple[Block, ...]
    """What is computed with them."""


@dataclass(frozen=True)
class RingPlan:
    """The work of one rank."""

    bounds: tuple[int, ...]
    """Rows where this rank's documents start, then the row after the last; each is causal by itself. Rows after it are
    padding.
    """
    steps: tuple[Step, ...]
    """Steps 1 to CP - 1."""

    @property
    def sent_rows(self) -> int:
        """Rows whose keys and values this rank sends in a forward pass."""
        return sum(end - start for step in self.steps for start, end in step.send)


@functools.lru_cache(maxsize=64)
def plan_ring(layout: SequenceLayout, rank: int) -> RingPlan:
    """The RingPlan of a CP rank."""
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
            Step(
                source,
                destination,
                _joined([(layout.rows[piece], layout.rows[piece] + piece.length) for piece in send]),
                sum(piece.length for piece in arriving),
                _blocks(layout, own, arriving),
            )
        )
    return RingPlan(tuple(bounds), tuple(steps))


def _by_document(layout: SequenceLayout, rank: int) -> dict[int, list[Piece]]:
    return _grouped(layout.of_rank(rank))


def _needed(held: dict[int, list[Piece]], wanting: dict[int, list[Piece]]) -> list[Piece]:
    """The pieces among those held by one rank that some query of another comes after, in the order of rows."""
    needed = []
    for document, pieces in held.items():
        if document in wanting:
            last = wanting[document][-1].start
            needed += [piece for piece in pieces if piece.start < last]
    return needed


def _blocks(layout: SequenceLayout, own: dict[int, list[Piece]], arriving: list[Piece]) -> tuple[Block, ...]:
    """Each query piece over the received pieces of its document that stand before it, in as few blocks as there are."""
    blocks: list[Block] = []
    first = 0
    for document, keys in _grouped(arriving).items():
        previous: Block | None = None
        for piece in own[document]:
            seen = sum(key.length for key in keys if key.start < piece.start)
            rows = layout.rows[piece], layout.rows[piece] + piece.length
            if not seen:
                continue
            if previous is not None and previous.keys == (first, first + seen):
                # The next piece of the document, which stands next in the rows, sees the same keys.
                blocks.pop()
                rows = previous.queries[0], rows[1]
            previous = Block(rows, (first, first + seen))
            blocks.append(previous)
        first += sum(key.length for key in keys)
    return tuple(blocks)


def _grouped(pieces: list[Piece]) -> dict[int, list[Piece]]:
    groups: dict[int, list[Piece]] = {}
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
