"""`longvita data view`: show one packed sequence, on the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longvita.commands.support.options import ConfigFile, Overrides
from longvita.processes import EXIT_COMPLETE, ignore_known_warnings

TERMINAL_CHARACTERS = 400
"""Of one run of text."""


def view(
    config: ConfigFile,
    overrides: Overrides = None,
    sequence: Annotated[int, typer.Option(min=0, help="Its number in the training stream.")] = 0,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas; layout.processes' own when absent.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write this page, print nothing.")] = None,
) -> int:
    """Show one packed sequence: its documents, which tokens carry loss, which rank encodes which tile."""
    ignore_known_warnings()
    from rich.console import Console
    from rich.markup import escape
    from rich.rule import Rule
    from rich.table import Table

    from longvita.commands.support.config_file import load_config
    from longvita.data.report import spans
    from longvita.data.report.page import check_page
    from longvita.data.report.sequence import view_sequence
    from longvita.data.report.sequence_page import COLUMNS, describe_place, document_rows, write_sequence_page

    loaded = load_config(config, overrides)
    if page is not None:
        check_page(page, "--html")
    found = view_sequence(loaded, sequence, replicas)
    if page is not None:
        write_sequence_page(page, found)
        print(f"wrote {page}")
        return EXIT_COMPLETE
    console = Console(width=max(Console().width, 120))
    console.print(describe_place(found), highlight=False, markup=False, soft_wrap=True)
    table = Table()
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in document_rows(found):
        table.add_row(*map(escape, row))
    console.print(table)
    for position, document in enumerate(found.documents):
        console.print(Rule(f"document {position}"))
        console.print(spans.as_text(document.spans, TERMINAL_CHARACTERS, found.rank_name))
    return EXIT_COMPLETE
