"""The layout for our own attention: each document on the fewest context-parallel ranks that keep the work balanced.

A document that is whole on one rank moves no keys and values. Only documents whose attention is a large part of a
rank's share are cut, zigzag, over as many ranks as that takes. The idea is that of sharding by document and adaptively
(WLB-LLM, arXiv 2503.17924; ByteScale, arXiv 2502.21231); the search below is our own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from longvita.parallel.sequence_layout import Piece, SequenceLayout, chain, sliced

MOST_IMBALANCE = 1.03
"""Busiest rank's attention work over the mean that is good enough, if a layout reaches it."""
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02, 0.0)
"""What part of a rank's mean work a document may be before it is cut over another rank; tried in this order."""


def compact(lengths: Sequence[int], cp_size: int, tp_size: int = 1) -> SequenceLayout:
    """Documents on the fewest ranks, tokens spread evenly, attention work balanced within MOST_IMBALANCE if it can be.

    Every rank gets ceil(tokens / CP) rows at most (rounded up to a multiple of tp_size), so no document is padded.
    A pure function of its arguments, for any CP size.
    """
    best = _place(lengths, cp_size, tp_size, SHARES[0])
    for share in SHARES[1:]:
        if imbalance(best) <= MOST_IMBALANCE:
            break
        best = min(best, _place(lengths, cp_size, tp_size, share), key=imbalance)
    return best


@functools.lru_cache(maxsize=16)
def compact_layouts(
    lengths: tuple[int, ...], ring_size: int, ulysses_size: int, tp_size: int
) -> tuple[SequenceLayout, SequenceLayout]:
    """`compact` over the places of a ring, and the same with each place cut into equal runs for those that share it.

    tp_size: TP ranks that a CP rank's rows are shared out over, 1 without sequence parallel.
    """
    ring_layout = compact(lengths, ring_size, ulysses_size * tp_size)
    return ring_layout, sliced(ring_layout, ulysses_size)


def rows_in_turn(rows: int, first: int, cp_size: int, cp_rank: int) -> range:
    """Which of a few new rows of a sequence a rank caches, when they stand at position `first` and all ranks have them.

    Each goes to the rank after that of the one before it, so that what is generated fills the ranks evenly.
    """
    return range((cp_rank - first) % cp_size, rows, cp_size)


def imbalance(layout: SequenceLayout) -> float:
    """Attention work of the busiest rank over the mean; 1 where there is no work."""
    work = [layout.work(rank) for rank in range(layout.cp_size)]
    return max(work) * layout.cp_size / sum(work) if sum(work) else 1.0


def moved_tokens(layout: SequenceLayout) -> int:
    """Tokens whose keys and values travel in a forward pass, once for each rank that needs them from another."""
    total = 0
    by_document: dict[int, list[Piece]] = {}
    for piece in layout.pieces:
        by_document.setdefault(piece.document, []).append(piece)
    for pieces in by_document.values():
        for rank in {piece.rank for piece in pieces}:
            last = max(piece.start for piece in pieces if piece.rank == rank)
            total += sum(piece.length for piece in pieces if piece.rank != rank and piece.start < last)
    return total


def _place(lengths: Sequence[int], cp_size: int, tp_size: int, share: float) -> SequenceLayout:
    """Longest documents first: each to the least busy ranks with room, on as many as `share` asks for."""
    total = sum(lengths)
    quota = -(-total // (cp_size * tp_size)) * tp_size
    room, work = [quota] * cp_size, [0] * cp_size
    mean = sum(length * (length + 1) // 2 for length in lengths) / cp_size
    pieces: list[Piece] = []
    for document in sorted(range(len(lengths)), key=lambda d: (-lengths[d], d)):
        length = lengths[document]
        if not length:
            continue
        wanted = _ranks_wanted(length, mean * share, quota, cp_size)
        free = sorted(
            (rank for rank in range(cp_size) if room[rank] >= length // wanted), key=lambda rank: (work[rank], rank)
        )
        parts = _parts(length, {rank: room[rank] for rank in sorted(free[:wanted])}) if len(free) >= wanted else None
        placed = _fill(document, length, room) if parts is None else _zigzag_over(document, parts)
        for piece in placed:
            room[piece.rank] -= piece.length
            work[piece.rank] += piece.work
        pieces += placed
    return SequenceLayout(tuple(lengths), tuple(sorted(pieces)), cp_size, tp_size, quota)


def _ranks_wanted(length: int, most_work: float, quota: int, cp_size: int) -> int:
    """Ranks for a document, none of which shall have more than `most_work` of it, or more tokens than `quota`."""
    work = length * (length + 1) / 2
    by_work = -(-work // most_work) if most_work > 0 else cp_size
    return int(min(max(by_work, -(-length // quota), 1), cp_size, length))


def _parts(length: int, room: dict[int, int]) -> dict[int, int] | None:
    """Tokens of a document for each rank, equal but for one; those left over go where most room is. None if none is."""
    part, over = divmod(length, len(room))
    roomiest = sorted(room, key=lambda rank: (-room[rank], rank))[:over]
    if any(room[rank] <= part for rank in roomiest):
        return None
    return {rank: part + (rank in roomiest) for rank in room}


def _zigzag_over(document: int, parts: dict[int, int]) -> list[Piece]:
    """A document in two chunks for each of the ranks, the first and last for the first rank, and so on inwards."""
    chunks = [(part // 2, rank) for rank, part in parts.items()]
    chunks += [(part - part // 2, rank) for rank, part in reversed(parts.items())]
    return chain(document, chunks)


def _fill(document: int, length: int, room: Sequence[int]) -> list[Piece]:
    """A document that fits nowhere as it should, poured into the ranks with most room."""
    chunks = []
    for rank in sorted(range(len(room)), key=lambda rank: (-room[rank], rank)):
        part = min(room[rank], length)
        chunks.append((part, rank))
        length -= part
    return chain(document, chunks)


def chunk_layout(tokens: int, cp_size: int, tp_size: int) -> SequenceLayout:
    """Layout of a chunk of one sequence in generation."""
    return compact_layouts((tokens,), cp_size, 1, tp_size)[1]
