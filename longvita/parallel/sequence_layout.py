"""Where each position of a packed sequence lives under context parallelism (CP).

A layout cuts documents into pieces, runs of positions, and gives each piece to a CP rank; the rows of a rank are its
pieces in the order of documents and positions, then padding up to a length that all ranks share. Under sequence
parallelism (SP) the rows of a CP rank are cut once more, into equal runs for its TP ranks. Everything that has a row
per position (tokens, labels, features of tiles, losses, keys and values) finds it through `to_rows`, and back through
`to_positions`.

`zigzag` is the layout of Transformer Engine and MindSpeed. `compact`, for our own attention, moves fewer keys and
values: see longvita.parallel.document_placement.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longvita.parallel.groups import ParallelGroups


@dataclass(frozen=True, order=True)
class Piece:
    """Positions `start` to `end` of a document, on one CP rank."""

    document: int
    start: int
    end: int
    rank: int

    @property
    def length(self) -> int:
        """Positions in it."""
        return self.end - self.start

    @property
    def work(self) -> int:
        """Pairs of a query in it and a key at or before that query."""
        return (self.end * (self.end + 1) - self.start * (self.start + 1)) // 2


@dataclass(frozen=True)
class SequenceLayout:
    """The pieces of one packed sequence.

    Build it with `zigzag`, or with document_placement.compact; they and this class's constructor raise
    ValueError for pieces that do not cover every document once.
    """

    lengths: tuple[int, ...]
    """Tokens of each document."""
    pieces: tuple[Piece, ...]
    """Ascending. A document's pieces cover its tokens, and may go on beyond them with padding."""
    cp_size: int
    tp_size: int
    """TP ranks that a CP rank's rows are shared out over: TP under sequence parallelism, else 1."""
    local_length: int
    """Rows of each CP rank, padding included; a multiple of tp_size."""

    def __post_init__(self) -> None:
        at = dict.fromkeys(range(len(self.lengths)), 0)
        for piece in self.pieces:
            if piece.start != at.get(piece.document) or piece.end <= piece.start:
                raise ValueError(f"{piece} does not go on where document {piece.document} was left")
            if not 0 <= piece.rank < self.cp_size:
                raise ValueError(f"{piece} is not on one of {self.cp_size} CP ranks")
            at[piece.document] = piece.end
        short = [document for document, length in enumerate(self.lengths) if at[document] < length]
        if short:
            raise ValueError(f"documents {short} are not covered to their ends")
        if self.local_length % self.tp_size or max(self.used, default=0) > self.local_length:
            raise ValueError(
                f"local_length {self.local_length} must be a multiple of {self.tp_size} and hold {max(self.used)} rows"
            )

    @functools.cached_property
    def used(self) -> list[int]:
        """Rows of each CP rank that hold a piece."""
        counts = [0] * self.cp_size
        for piece in self.pieces:
            counts[piece.rank] += piece.length
        return counts

    @functools.cached_property
    def rows(self) -> dict[Piece, int]:
        """First row of each piece on its CP rank."""
        at = [0] * self.cp_size
        first = {}
        for piece in self.pieces:
            first[piece] = at[piece.rank]
            at[piece.rank] += piece.length
        return first

    def of_rank(self, rank: int) -> list[Piece]:
        """The pieces of a CP rank, in the order of its rows."""
        return [piece for piece in self.pieces if piece.rank == rank]

    def work(self, rank: int) -> int:
        """Query-key pairs of a CP rank's attention."""
        return sum(piece.work for piece in self.of_rank(rank))

    def to_rows(self, documents: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(CP rank, TP rank, row on that TP rank) of each (document, position): int64 of the arguments' shape.

        Raises IndexError for a position that no piece holds.
        """
        table = self._table
        index = torch.searchsorted(table.keys, _key(documents, positions), right=True) - 1
        inside = (index >= 0) & (documents >= 0)
        index = index.clamp(min=0)
        inside &= (table.documents[index] == documents) & (positions < table.ends[index]) & (positions >= 0)
        if not bool(inside.all()):
            where = torch.nonzero(~inside)[0].tolist()
            raise IndexError(
                f"document {int(documents[tuple(where)])} has no position {int(positions[tuple(where)])} in this layout"
            )
        row = table.rows[index] + positions - table.starts[index]
        slice_length = self.local_length // self.tp_size
        return table.ranks[index], row.div(slice_length, rounding_mode="floor"), row % slice_length

    def to_positions(self, cp_rank: int, tp_rank: int | None = None) -> tuple[Tensor, Tensor]:
        """(document, position) of each row of a CP rank, or of one of its TP ranks: int64, -1 for padding."""
        pieces = self.of_rank(cp_rank)
        documents = torch.full((self.local_length,), -1, dtype=torch.int64)
        positions = torch.full((self.local_length,), -1, dtype=torch.int64)
        for piece in pieces:
            rows = slice(self.rows[piece], self.rows[piece] + piece.length)
            documents[rows] = piece.document
            positions[rows] = torch.arange(piece.start, piece.end)
        if tp_rank is None:
            return documents, positions
        slice_length = self.local_length // self.tp_size
        rows = slice(tp_rank * slice_length, (tp_rank + 1) * slice_length)
        return documents[rows], positions[rows]

    def rows_of_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`to_rows` of tokens by their place in the packed sequence, documents one after the other without padding."""
        bounds = torch.tensor([0, *self.lengths]).cumsum(0)
        documents = torch.bucketize(tokens, bounds[1:], right=True)
        return self.to_rows(documents, tokens - bounds[documents.clamp(max=len(self.lengths) - 1)])

    def tokens(self, cp_rank: int) -> Tensor:
        """Place in the packed sequence of the token in each row of a CP rank: [local_length] int64, -1 for padding."""
        documents, positions = self.to_positions(cp_rank)
        bounds = torch.tensor([0, *self.lengths]).cumsum(0)
        lengths = torch.tensor(self.lengths)
        held = (documents >= 0) & (positions < lengths[documents])
        return torch.where(held, bounds[documents] + positions, -1)

    @functools.cached_property
    def _table(self) -> _Table:
        column = functools.partial(torch.tensor, dtype=torch.int64)
        documents, starts = column([p.document for p in self.pieces]), column([p.start for p in self.pieces])
        return _Table(
            keys=_key(documents, starts),
            documents=documents,
            starts=starts,
            ends=column([p.end for p in self.pieces]),
            ranks=column([p.rank for p in self.pieces]),
            rows=column([self.rows[p] for p in self.pieces]),
        )


@dataclass(frozen=True)
class _Table:
    """The pieces as columns, for looking many positions up at once."""

    keys: Tensor
    documents: Tensor
    starts: Tensor
    ends: Tensor
    ranks: Tensor
    rows: Tensor


_LONGEST = 1 << 40


def sliced(layout: SequenceLayout, parts: int) -> SequenceLayout:
    """The layout in which each rank's rows are cut into equal runs for `parts` ranks, one after the other.

    `layout.tp_size` must be a multiple of `parts`, which makes the rows divide; what is left of it is for TP.
    """
    length = layout.local_length // parts
    pieces = []
    for piece, row in layout.rows.items():
        first, last = row // length, (row + piece.length - 1) // length
        cuts = [piece.start, *(piece.start + index * length - row for index in range(first + 1, last + 1)), piece.end]
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            pieces.append(Piece(piece.document, start, end, piece.rank * parts + first + number))
    cp_size, tp_size = layout.cp_size * parts, layout.tp_size // parts
    return SequenceLayout(layout.lengths, tuple(sorted(pieces)), cp_size, tp_size, length)


def undivided(length: int, tp_size: int = 1) -> SequenceLayout:
    """A sequence of `length` tokens on one CP rank."""
    return SequenceLayout((length,), tuple(chain(0, [(length, 0)])), 1, tp_size, -(-length // tp_size) * tp_size)


def _key(documents: Tensor, positions: Tensor) -> Tensor:
    return documents * _LONGEST + positions


def zigzag(lengths: Sequence[int], cp_size: int, tp_size: int = 1, multiple: int = 1) -> SequenceLayout:
    """Every document in 2 x CP chunks, of which rank r holds the r-th from the start and the r-th from the end.

    Each document is padded to a multiple of 2 x CP (documents of no token have no piece), so that a causal mask gives
    every rank the same work (arXiv 2310.03294, and the layout that Transformer Engine's `thd` kernels take). The last
    one is padded further, until the rows of each TP rank are a multiple of `multiple`: these kernels know no rows
    outside documents.
    """
    chunks = [-(-length // (2 * cp_size)) for length in lengths]
    last = max((document for document, chunk in enumerate(chunks) if chunk), default=None)
    if last is not None:
        unit = tp_size * multiple
        chunks[last] += -sum(chunks) % (unit // math.gcd(unit, 2))
    ranks = [*range(cp_size), *reversed(range(cp_size))]
    pieces: list[Piece] = []
    for document, chunk in enumerate(chunks):
        pieces += chain(document, [(chunk, rank) for rank in ranks])
    return SequenceLayout(tuple(lengths), tuple(pieces), cp_size, tp_size, 2 * sum(chunks))


def chain(document: int, chunks: Iterable[tuple[int, int]]) -> list[Piece]:
    """Chunks of (length, rank) as the pieces of a document; neighbours on one rank are one piece."""
    pieces: list[Piece] = []
    start = 0
    for length, rank in chunks:
        if pieces and pieces[-1].rank == rank:
            pieces[-1] = Piece(document, pieces[-1].start, start + length, rank)
        elif length:
            pieces.append(Piece(document, start, start + length, rank))
        start += length
    return pieces


def schedule_length(tokens: int, groups: ParallelGroups, sequence_parallel: bool) -> int:
    """Tokens of a micro batch with its padding, as Megatron's schedules count them: all CP ranks' rows."""
    unit = groups.cp_size * (groups.tp_size if sequence_parallel else 1)
    return -(-tokens // unit) * unit
