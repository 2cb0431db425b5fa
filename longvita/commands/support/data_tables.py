"""The report of `longvita data report` for the terminal: tables, bars, and sequences drawn with letters."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvita.data.mix.missing_files import describe_missing
from longvita.data.quarantine import reasons_text
from longvita.data.report.figures import Histogram, SourceFigures, imbalance_text
from longvita.data.report.mix import MixReport

BAR = 60
"""Width of the bars and of a sequence's row, characters."""


def show_mix(console: Console, mix: MixReport) -> None:
    """Print the tables and bars of one mix."""
    title, packing = mix.title, mix.packing
    console.print(source_table(f"{title}: sources", mix.sources))
    if mix.missing:
        console.print(f"\n{title}: left out, {describe_missing(mix.missing)}", highlight=False, markup=False)
    for source in mix.sources:
        console.print(f"\n{title}: tokens of a sample of {source.source}", highlight=False, markup=False)
        console.print(bars(source.lengths), highlight=False, markup=False)
    console.print(
        f"\n{title}: {packing.sequences} sequences of {packing.sequence_length} tokens an epoch, "
        f"{packing.fill:.1%} filled\n{bars(packing.fills)}\n\n"
        f"{sequence_picture(packing.first, packing.sequence_length)}\n",
        highlight=False,
        markup=False,
    )
    if mix.imbalance is not None:
        console.print(f"{title}: {imbalance_text(mix.imbalance)}\n", highlight=False, markup=False)


def source_table(title: str, sources: Sequence[SourceFigures]) -> Table:
    """Make the table of a mix, one row a source: its samples, those used and those quarantined."""
    table = Table("source", "samples", "used", "tokens", "tiles", "resampled", "quarantined", title=title)
    for one in sources:
        figures = (one.samples, one.used, one.tokens, one.tiles, one.resampled)
        table.add_row(escape(one.source), *(f"{figure:,}" for figure in figures), reasons_text(one.quarantined))
    return table


def sequence_picture(documents: Sequence[np.ndarray], sequence_length: int) -> str:
    """Draw sequences, each document as a run of its letter; `documents`: lengths [d] of each sequence's documents."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    rows = []
    for number, lengths in enumerate(documents):
        ends = np.round(np.cumsum(lengths) / sequence_length * BAR).astype(int)
        starts = [0, *ends[:-1]]
        row = "".join(
            letters[place % len(letters)] * (end - start) for place, (start, end) in enumerate(zip(starts, ends))
        )
        rows.append(f"{number:4d} |{row:<{BAR}}| {len(lengths)} documents, {lengths.sum() / sequence_length:.1%}")
    return "\n".join(rows)


def bars(rows: Histogram) -> str:
    """Draw a histogram: names, bars and counts."""
    most, width = max((count for _, count in rows), default=0), max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:>{width}} {'█' * round(count / max(most, 1) * BAR)} {count:,}" for name, count in rows)
