"""`longvita data view`: one packed sequence, on the terminal or as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

from longvita.config.schema import Config
from longvita.data.report import spans
from longvita.data.report.page import check_page
from longvita.data.report.sequence import DocumentView, SequenceView, view_sequence
from longvita.pages import write_page
from longvita.processes import ignore_known_warnings

TERMINAL_CHARACTERS, PAGE_CHARACTERS = 400, 1_000_000
"""Of one run of text, on the terminal and on the page."""
COLUMNS = ("document", "source", "sample", "positions", "tokens", "with loss", "tiles", "tiles are encoded by")


def view(config: Config, number: int, replicas: int | None, page: Path | None) -> int:
    """Prints sequence `number` of the training stream, or writes it as a page; the exit code.

    Raises DataError, TokenizerError.
    """
    ignore_known_warnings()
    if page is not None:
        check_page(page, "--html")
    sequence = view_sequence(config, number, replicas)
    if page is not None:
        _write_page(page, sequence)
        print(f"wrote {page}")
        return 0
    console = Console(width=max(Console().width, 120))
    console.print(_place(sequence), highlight=False, markup=False, soft_wrap=True)
    table = Table()
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in _rows(sequence):
        table.add_row(*map(escape, row))
    console.print(table)
    for position, document in enumerate(sequence.documents):
        console.print(Rule(f"document {position}"))
        console.print(spans.as_text(document.spans, TERMINAL_CHARACTERS, sequence.rank_name))
    return 0


def _write_page(path: Path, sequence: SequenceView) -> None:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in _rows(sequence))
    table = f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    parts = [f"<p>{html.escape(_place(sequence))} Text that carries loss is <mark>marked</mark>.</p>", table]
    for position, document in enumerate(sequence.documents):
        tokens = spans.as_html(document.spans, PAGE_CHARACTERS, sequence.rank_name)
        parts.append(f"<h2>Document {position}</h2>{tokens}")
    write_page(path, f"Sequence {sequence.number:,}", parts, spans.STYLE)


def _place(sequence: SequenceView) -> str:
    padding = sequence.length - sequence.tokens
    return (
        f"Sequence {sequence.number:,} of the stream, epoch {sequence.epoch}: {len(sequence.documents)} documents, "
        f"{sequence.tokens:,} tokens and {padding:,} of padding. Step {sequence.step:,} takes it: replica "
        f"{sequence.replica} of {sequence.replicas}, micro batch {sequence.micro_batch}."
    )


def _rows(sequence: SequenceView) -> Iterator[tuple[str, ...]]:
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
