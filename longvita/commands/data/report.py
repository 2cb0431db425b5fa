"""`longvita data report`: show what a config's data holds and how it is packed, as a page or on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longvita.commands.support.options import AllowMissing, ConfigFile, Overrides, with_missing
from longvita.processes import EXIT_COMPLETE

PAGE = "data.html"
"""Name of the page below a run's output folder, where no other is given."""


def report(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="HTML page to write; data.html below output when absent.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the figures, no examples; write nothing.")] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Replicas that a step is divided among; 8 when absent, or fewer.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Samples of each source on the page.")] = 4,
    allow_missing: AllowMissing = False,
) -> int:
    """Show what each source holds, how it is packed, examples with their pictures, and what is quarantined."""
    from rich.console import Console

    from longvita.commands.support.config_file import load_config
    from longvita.commands.support.data_tables import show_mix
    from longvita.data.report.mix import collect
    from longvita.data.report.page import check_page, write_report

    loaded = load_config(config, with_missing(overrides, allow_missing))
    folder = Path(loaded.output)
    page = output or folder / PAGE
    if not text:
        check_page(page, "--output", made=folder if page == folder / PAGE else None)
    mixes = {"training": loaded.data.dataset, "held out": loaded.data.validation}
    shown = 0 if text else examples
    found = [collect(title, sources, loaded, replicas, shown) for title, sources in mixes.items() if sources]
    if text:
        console = Console(width=max(Console().width, 100))
        for mix in found:
            show_mix(console, mix)
    else:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_report(page, loaded.name, found)
        print(f"wrote {page}")
    return EXIT_COMPLETE
