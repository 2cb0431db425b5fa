"""Where each position of a packed sequence is placed under context parallelism (CP).

A sequence layout cuts documents into pieces (runs of positions) and assigns each piece to a CP rank. The rows of a rank
are its pieces in the order of documents and positions, then padding up to a length common to all ranks. Under sequence
parallelism (SP) the rows of a CP rank are cut again, into equal runs for its TP ranks. Everything with a row per
position (tokens, labels, features of tiles, losses, keys and values) finds the row by `to_rows`, and the position of a
row by `to_positions`.

`zigzag` is the layout of Transformer Engine and MindSpeed: every document on all ranks. `compact` is for our own
attention: each document on the fewest ranks that keep the attention work balanced, so that fewer keys and values
travel. Only documents whose attention is a large part of a rank's work are cut, zigzag, over as many ranks as that
takes. The idea is sharding by document, adaptively (WLB-LLM, arXiv 2503.17924; ByteScale, arXiv 2502.21231); the search
is our own.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups


MAX_IMBALANCE = 1.03
"""Attention work of the busiest rank over the mean; `compact` stops its search at a layout below this."""
WORK_LIMITS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02, 0.0)
"""Work of one document on a rank, as a part of the mean work of a rank, above which `compact` cuts the document over
one more rank; tried in this order.
"""
_MAX_POSITION = 1 << 40


@dataclass(frozen=True, order=True)
class DocumentPiece:
    """Positions `start` to `end` of a document, on one CP rank."""

    document: int
    start: int
    end: int
    rank: int

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.end - self.start

    @property
    def work(self) -> int:
        """Pairs of a query of this piece and a key at or before the query."""
        return (self.end * (self.end + 1) - self.start * (self.start + 1)) // 2


@dataclass(frozen=True)
class SequenceLayout:
    """The pieces of one packed sequence. Raises ValueError for pieces that do not cover every document once."""

    lengths: tuple[int, ...]
    """Tokens of each document."""
    pieces: tuple[DocumentPiece, ...]
    """Ascending. A document's pieces cover its tokens and may continue with padding."""
    cp_size: int
    tp_size: int
    """TP ranks that a CP rank's rows are split over: TP under sequence parallelism, else 1."""
    local_length: int
    """Rows of each CP rank, padding included; a multiple of tp_size."""

    def __post_init__(self) -> None:
        at = dict.fromkeys(range(len(self.lengths)), 0)
        for piece in self.pieces:
            if piece.start != at.get(piece.document) or piece.end <= piece.start:
                raise ValueError(f"{piece} does not start where the previous piece of document {piece.document} ends")
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
        """Rows of each CP rank that hold a position; the rest is padding."""
        counts = [0] * self.cp_size
        for piece in self.pieces:
            counts[piece.rank] += piece.length
        return counts

    @functools.cached_property
    def rows(self) -> dict[DocumentPiece, int]:
        """First row of each piece on its CP rank."""
        at = [0] * self.cp_size
        first = {}
        for piece in self.pieces:
            first[piece] = at[piece.rank]
            at[piece.rank] += piece.length
        return first

    def of_rank(self, rank: int) -> list[DocumentPiece]:
        """Return the pieces of a CP rank, in the order of its rows."""
        return [piece for piece in self.pieces if piece.rank == rank]

    def work(self, rank: int) -> int:
        """Count the query-key pairs of a CP rank's attention."""
        return sum(piece.work for piece in self.of_rank(rank))

    def to_rows(self, documents: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map each (document, position) to (CP rank, TP rank, row on that TP rank): int64 of the arguments' shape.

        Raises IndexError for a position that no piece holds.
        """
        keys, owners, starts, ends, ranks, first_rows = self._table
        index = torch.searchsorted(keys, documents * _MAX_POSITION + positions, right=True) - 1
        inside = (index >= 0) & (documents >= 0)
        index = index.clamp(min=0)
        inside &= (owners[index] == documents) & (positions < ends[index]) & (positions >= 0)
        if not bool(inside.all()):
            where = torch.nonzero(~inside)[0].tolist()
            raise IndexError(
                f"document {int(documents[tuple(where)])} has no position {int(positions[tuple(where)])} in this layout"
            )
        row = first_rows[index] + positions - starts[index]
        slice_length = self.local_length // self.tp_size
        return ranks[index], row.div(slice_length, rounding_mode="floor"), row % slice_length

    def to_positions(self, cp_rank: int, tp_rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Map each row of a CP rank, or of one of its TP ranks, to (document, position): int64, -1 for padding."""
        documents = torch.full((self.local_length,), -1, dtype=torch.int64)
        positions = documents.clone()
        for piece in self.of_rank(cp_rank):
            rows = slice(self.rows[piece], self.rows[piece] + piece.length)
            documents[rows] = piece.document
            positions[rows] = torch.arange(piece.start, piece.end)
        if tp_rank is None:
            return documents, positions
        return documents.chunk(self.tp_size)[tp_rank], positions.chunk(self.tp_size)[tp_rank]

    def rows_of_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`to_rows` for tokens numbered through the packed sequence, documents back to back without padding."""
        documents = torch.bucketize(tokens, self._bounds[1:], right=True)
        return self.to_rows(documents, tokens - self._bounds[documents.clamp(max=len(self.lengths) - 1)])

    def tokens(self, cp_rank: int) -> Tensor:
        """Return the number in the packed sequence of each row's token on a CP rank: [local_length], -1 for padding."""
        documents, positions = self.to_positions(cp_rank)
        held = (documents >= 0) & (positions < self._bounds.diff()[documents])
        return torch.where(held, self._bounds[documents] + positions, -1)

    @functools.cached_property
    def _bounds(self) -> Tensor:
        """First tokens of the documents in the packed sequence, then the number of tokens."""
        return torch.tensor([0, *self.lengths]).cumsum(0)

    @functools.cached_property
    def _table(self) -> Tensor:
        """The pieces as columns, for look-ups of many positions: keys, documents, starts, ends, ranks, first rows."""
        pieces = [
            (piece.document * _MAX_POSITION + piece.start, piece.document, piece.start, piece.end, piece.rank, row)
            for piece, row in self.rows.items()
        ]
        return torch.tensor(pieces, dtype=torch.int64).reshape(-1, 6).T.contiguous()


def undivided(length: int, tp_size: int = 1) -> SequenceLayout:
    """Return the layout of a sequence of `length` tokens on one CP rank."""
    return SequenceLayout((length,), tuple(chain(0, [(length, 0)])), 1, tp_size, -(-length // tp_size) * tp_size)


def zigzag(lengths: Sequence[int], cp_size: int, tp_size: int = 1, multiple: int = 1) -> SequenceLayout:
    """Cut every document into 2 x CP chunks; rank r holds the r-th from the start and the r-th from the end.

    Each document is padded to a multiple of 2 x CP (documents without a token have no piece): a causal mask then gives
    every rank equal work (arXiv 2310.03294; Transformer Engine's `thd` kernels expect this layout). The last document
    is padded further, until the rows of each TP rank are a multiple of `multiple`: these kernels accept no rows outside
    documents.
    """
    chunks = [-(-length // (2 * cp_size)) for length in lengths]
    last = max((document for document, chunk in enumerate(chunks) if chunk), default=None)
    if last is not None:
        unit = tp_size * multiple
        chunks[last] += -sum(chunks) % (unit // math.gcd(unit, 2))
    ranks = [*range(cp_size), *reversed(range(cp_size))]
    pieces: list[DocumentPiece] = []
    for document, chunk in enumerate(chunks):
        pieces += chain(document, [(chunk, rank) for rank in ranks])
    return SequenceLayout(tuple(lengths), tuple(pieces), cp_size, tp_size, 2 * sum(chunks))


cached_zigzag = functools.lru_cache(maxsize=16)(zigzag)
"""`zigzag` for lengths in a tuple."""


def chain(document: int, chunks: Iterable[tuple[int, int]]) -> list[DocumentPiece]:
    """Return chunks of (length, rank) as the pieces of a document, joining neighbours on one rank."""
    pieces: list[DocumentPiece] = []
    start = 0
    for length, rank in chunks:
        if pieces and pieces[-1].rank == rank:
            pieces[-1] = DocumentPiece(document, pieces[-1].start, start + length, rank)
        elif length:
            pieces.append(DocumentPiece(document, start, start + length, rank))
        start += length
    return pieces


def sliced(layout: SequenceLayout, parts: int) -> SequenceLayout:
    """Cut each rank's rows into equal runs for `parts` ranks, which take the rank's place.

    `layout.tp_size` must be a multiple of `parts`, so that the rows divide; the quotient is the new layout's tp_size.
    """
    length = layout.local_length // parts
    pieces = []
    for piece, row in layout.rows.items():
        first, last = row // length, (row + piece.length - 1) // length
        cuts = [piece.start, *(piece.start + index * length - row for index in range(first + 1, last + 1)), piece.end]
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            pieces.append(DocumentPiece(piece.document, start, end, piece.rank * parts + first + number))
    cp_size, tp_size = layout.cp_size * parts, layout.tp_size // parts
    return SequenceLayout(layout.lengths, tuple(sorted(pieces)), cp_size, tp_size, length)


@functools.lru_cache(maxsize=16)
def compact_layouts(
    lengths: tuple[int, ...], ring_size: int, ulysses_size: int, tp_size: int
) -> tuple[SequenceLayout, SequenceLayout]:
    """Return `compact` over the ranks of a ring, and over all CP ranks: each ring rank's rows cut over a Ulysses group.

    tp_size: TP ranks that a CP rank's rows are split over, 1 without sequence parallel.
    """
    ring_layout = compact(lengths, ring_size, ulysses_size * tp_size)
    return ring_layout, sliced(ring_layout, ulysses_size)


def compact(lengths: Sequence[int], cp_size: int, tp_size: int = 1) -> SequenceLayout:
    """Place documents on the fewest ranks: tokens spread evenly, attention work within MAX_IMBALANCE where possible.

    Every rank gets at most ceil(tokens / CP) rows (rounded up to a multiple of tp_size); no document is padded.
    A pure function of its arguments, for any CP size.
    """
    best = _place(lengths, cp_size, tp_size, WORK_LIMITS[0])
    for limit in WORK_LIMITS[1:]:
        if imbalance(best) <= MAX_IMBALANCE:
            break
        best = min(best, _place(lengths, cp_size, tp_size, limit), key=imbalance)
    return best


def imbalance(layout: SequenceLayout) -> float:
    """Return the attention work of the busiest rank over the mean; 1 where there is no work."""
    work = [layout.work(rank) for rank in range(layout.cp_size)]
    return max(work) * layout.cp_size / sum(work) if sum(work) else 1.0


def _place(lengths: Sequence[int], cp_size: int, tp_size: int, limit: float) -> SequenceLayout:
    """Place the longest documents first: each on the least busy ranks with room, on as many as `limit` requires."""
    total = sum(lengths)
    quota = -(-total // (cp_size * tp_size)) * tp_size
    room, work = [quota] * cp_size, [0] * cp_size
    mean = sum(length * (length + 1) // 2 for length in lengths) / cp_size
    pieces: list[DocumentPiece] = []
    for document in sorted(range(len(lengths)), key=lambda d: (-lengths[d], d)):
        length = lengths[document]
        if not length:
            continue
        count = _rank_count(length, mean * limit, quota, cp_size)
        free = sorted(
            (rank for rank in range(cp_size) if room[rank] >= length // count), key=lambda rank: (work[rank], rank)
        )
        enough = len(free) >= count
        parts = _equal_parts(length, {rank: room[rank] for rank in sorted(free[:count])}) if enough else None
        placed = _fill(document, length, room) if parts is None else _zigzag_over(document, parts)
        for piece in placed:
            room[piece.rank] -= piece.length
            work[piece.rank] += piece.work
        pieces += placed
    return SequenceLayout(tuple(lengths), tuple(sorted(pieces)), cp_size, tp_size, quota)


def _rank_count(length: int, max_work: float, quota: int, cp_size: int) -> int:
    """Return the ranks for a document, none of which should have more than `max_work` of it, or more than `quota`."""
    work = length * (length + 1) / 2
    by_work = -(-work // max_work) if max_work > 0 else cp_size
    return int(min(max(by_work, -(-length // quota), 1), cp_size, length))


def _equal_parts(length: int, room: dict[int, int]) -> dict[int, int] | None:
    """Split a document equally over ranks; the remainder goes to ranks with most room. None where it does not fit."""
    part, over = divmod(length, len(room))
    roomiest = sorted(room, key=lambda rank: (-room[rank], rank))[:over]
    if any(room[rank] <= part for rank in roomiest):
        return None
    return {rank: part + (rank in roomiest) for rank in room}


def _zigzag_over(document: int, parts: dict[int, int]) -> list[DocumentPiece]:
    """Cut a document into two chunks for each rank: first and last for the first rank, and so on inwards."""
    chunks = [(part // 2, rank) for rank, part in parts.items()]
    chunks += [(part - part // 2, rank) for rank, part in reversed(parts.items())]
    return chain(document, chunks)


def _fill(document: int, length: int, room: Sequence[int]) -> list[DocumentPiece]:
    """Place a document that fits no balanced choice of ranks: fill the ranks with most room."""
    chunks = []
    for rank in sorted(range(len(room)), key=lambda rank: (-room[rank], rank)):
        part = min(room[rank], length)
        chunks.append((part, rank))
        length -= part
    return chain(document, chunks)


def schedule_length(tokens: int, groups: ParallelGroups, sequence_parallel: bool) -> int:
    """Return the padded tokens of a micro batch, as Megatron's schedules count them: the rows of all CP ranks."""
    unit = groups.cp_size * (groups.tp_size if sequence_parallel else 1)
    return -(-tokens // unit) * unit
