"""One packed sequence as a page, and the texts and rows that the terminal shows too."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longvita.data.report import spans
from longvita.data.report.page import table
from longvita.data.report.sequence import DocumentView, SequenceView
from longvita.pages import write_page

PAGE_CHARACTERS = 1_000_000
"""Of one run of text."""
COLUMNS = ("document", "source", "sample", "positions", "tokens", "with loss", "tiles", "tiles are encoded by")


def write_sequence_page(path: Path, sequence: SequenceView) -> None:
    """Write the page."""
    place = html.escape(describe_place(sequence))
    parts = [f"<p>{place} Text that carries loss is <mark>marked</mark>.</p>", table(COLUMNS, document_rows(sequence))]
    for position, document in enumerate(sequence.documents):
        tokens = spans.as_html(document.spans, PAGE_CHARACTERS, sequence.rank_name)
        parts.append(f"<h2>Document {position}</h2>{tokens}")
    write_page(path, f"Sequence {sequence.number:,}", parts, spans.STYLE)


def describe_place(sequence: SequenceView) -> str:
    """Where the sequence is in the stream, in one sentence."""
    padding = sequence.length - sequence.tokens
    return (
        f"Sequence {sequence.number:,} of the stream, epoch {sequence.epoch}: {len(sequence.documents)} documents, "
        f"{sequence.tokens:,} tokens and {padding:,} of padding. Step {sequence.step:,} uses it: replica "
        f"{sequence.replica} of {sequence.replicas}, micro batch {sequence.micro_batch}."
    )


def document_rows(sequence: SequenceView) -> Iterator[tuple[str, ...]]:
    """One row a document, by COLUMNS."""
    for position, document in enumerate(sequence.documents):
        request, end = document.request, document.start + document.request.length
        yield (
            str(position),
            request.source,
            request.name,
            f"{document.start:,} to {end - 1:,}",
            f"{request.length:,}",
            f"{document.loss_tokens:,}",
            f"{request.num_tiles:,}",
            _owners(document, sequence),
        )


def _owners(document: DocumentView, sequence: SequenceView) -> str:
    ranks, counts = np.unique(document.owners, return_counts=True)
    return ", ".join(f"{sequence.rank_name(rank)}: {count:,}" for rank, count in zip(ranks.tolist(), counts.tolist()))
