"""Shows what a config's data holds and how it is packed, without decoding any of it.

python tools/inspect_data.py CONFIG [section.field=value ...] [--allow-missing]

For each source: samples, those that the mix takes, their tokens and tiles, the length of samples, and what is set
aside and why. Then the packed sequences of the first epoch: how full they are, and a picture of the first ones, one row
a sequence, one letter a document (a space is padding).
"""

from __future__ import annotations

import itertools
import string
import sys
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from longvita.config import load
from longvita.config.schema import Config, DatasetConfig
from longvita.data.catalog import Catalog, build_catalog, make_template, plan_epoch
from longvita.data.missing import describe_missing
from longvita.data.quarantine import count_reasons
from longvita.data.template import ChatTemplate
from longvita.errors import UserError

BAR = 60
"""Width of the bars and of a sequence's row, characters."""
ROWS = 16
"""Sequences that are drawn."""
STEPS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Bounds of the classes of fill."""


def main(
    config: Annotated[str, typer.Argument(help="YAML file", metavar="CONFIG")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Leave out files that are not there.")] = False,
) -> None:
    """Show samples, lengths, packing and what is set aside."""
    settings = load(config, [*(overrides or []), *(["data.allow_missing=true"] if allow_missing else [])])
    template = make_template(settings)
    console = Console(width=max(Console().width, 100))
    for title, sources in (("training", settings.data.dataset), ("held out", settings.data.validation)):
        if sources:
            show_mix(console, title, settings, template, sources)


def show_mix(
    console: Console, title: str, config: Config, template: ChatTemplate, sources: dict[str, DatasetConfig]
) -> None:
    """Tables and pictures of one mix."""
    catalog = build_catalog(config, template, sources)
    console.print(source_table(f"{title}: sources", catalog))
    if catalog.missing:
        console.print(f"\n{title}: left out, {describe_missing(catalog.missing)}", highlight=False, markup=False)
    console.print(f"\n{title}: tokens of a sample\n{length_picture(catalog.lengths[catalog.taken])}", highlight=False)
    plan, length = plan_epoch(catalog, config, 0), config.data.sequence_length
    documents = [catalog.lengths[plan.sequence(number)] for number in range(plan.num_sequences)]
    console.print(
        f"\n{title}: {plan.num_sequences} sequences of {length} tokens an epoch, {plan.fill:.1%} filled\n"
        f"{fill_picture(documents, length)}\n\n{sequence_picture(documents[:ROWS], length)}\n",
        highlight=False,
        markup=False,
    )


def source_table(title: str, catalog: Catalog) -> Table:
    """One row a source: what there is, what is taken, what is set aside."""
    table = Table("source", "samples", "taken", "tokens", "tiles", "resampled", "set aside", title=title)
    for source in dict.fromkeys(file.source for file in catalog.files):
        files = [file for file in catalog.files if file.source == source]
        entries = [entry for file in files for entry in (*file.index.broken, *file.measured.too_long)]
        reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(entries).items())
        limit = catalog.settings.max_num_frames
        figures = (
            sum(len(file.index) + len(file.index.broken) for file in files),
            sum(len(file.taken) for file in files),
            sum(int(file.measured.lengths[file.taken].sum()) for file in files),
            sum(int(file.measured.tiles[file.taken].sum()) for file in files),
            sum(int((file.measured.frame_limits[file.taken] < limit).sum()) for file in files),
        )
        table.add_row(source, *(f"{figure:,}" for figure in figures), reasons or "none")
    return table


def length_picture(lengths: np.ndarray) -> str:
    """A histogram over powers of two."""
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    rows = [(f"up to {2**power:,}", int((powers == power).sum())) for power in range(powers.min(), powers.max() + 1)]
    return bars(rows)


def fill_picture(documents: Sequence[np.ndarray], sequence_length: int) -> str:
    """How many sequences are how full; `documents` are the lengths [d] of each one's documents."""
    fills = np.asarray([lengths.sum() for lengths in documents]) / sequence_length
    bounds = (0.0, *STEPS, np.inf)
    names = [f"below {STEPS[0]:.0%}", *(f"from {step:.0%}" for step in STEPS)]
    counts = [int(((fills >= low) & (fills < high)).sum()) for low, high in itertools.pairwise(bounds)]
    return bars(list(zip(names, counts)))


def sequence_picture(documents: Sequence[np.ndarray], sequence_length: int) -> str:
    """Sequences, each document as a run of its letter; `documents` as for `fill_picture`."""
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


def bars(rows: Sequence[tuple[str, int]]) -> str:
    """Names, bars and counts."""
    most, width = max(count for _, count in rows), max(len(name) for name, _ in rows)
    return "\n".join(f"{name:>{width}} {'█' * round(count / max(most, 1) * BAR)} {count:,}" for name, count in rows)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
