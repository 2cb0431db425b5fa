"""The communication of ring attention, counted from a sequence layout alone."""

from __future__ import annotations

from longvita.parallel.sequence_layout import DocumentPiece, SequenceLayout


def moved_tokens(layout: SequenceLayout) -> int:
    """Tokens whose keys and values are sent in a forward pass, once for each rank that needs them from another."""
    total = 0
    by_document: dict[int, list[DocumentPiece]] = {}
    for piece in layout.pieces:
        by_document.setdefault(piece.document, []).append(piece)
    for pieces in by_document.values():
        for rank in {piece.rank for piece in pieces}:
            last = max(piece.start for piece in pieces if piece.rank == rank)
            total += sum(piece.length for piece in pieces if piece.rank != rank and piece.start < last)
    return total
