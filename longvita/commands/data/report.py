"""`longvita data report`: what a config's data holds and how it is packed, as a page or on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from longvita.commands.support.data_tables import show_mix
from longvita.config.schema import Config
from longvita.data.report.mix import ReportOptions, collect
from longvita.data.report.page import check_page, write_report

PAGE = "data.html"
"""Name of the page below a run's output folder, where no other is given."""


def report(config: Config, output: Path | None, options: ReportOptions) -> int:
    """Writes the page `output`, or prints the same figures where there is none; the exit code.

    Raises DataError, also for an `output` that can't be a file, and TokenizerError.
    """
    if output is not None:
        check_page(output, "--output", made=Path(config.output) if output == Path(config.output) / PAGE else None)
    mixes = {"training": config.data.dataset, "held out": config.data.validation}
    found = [collect(title, sources, config, options) for title, sources in mixes.items() if sources]
    if output is None:
        console = Console(width=max(Console().width, 100))
        for mix in found:
            show_mix(console, mix)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_report(output, config.name, found)
        print(f"wrote {output}")
    return 0
