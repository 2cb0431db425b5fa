"""`longvita data report`: what a config's data holds and how it is packed, as a page or on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from longvita.config.schema import Config
from longvita.data.report.mix import ReportOptions, gather
from longvita.data.report.page import write_report
from longvita.data.report.text import show_mix


def report(config: Config, output: Path | None, options: ReportOptions) -> int:
    """Writes the page `output`, or prints the same figures where there is none; the exit code.

    Raises DataError, TokenizerError; FileNotFoundError if the folder of `output` is missing.
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {output} does not exist; make it, or write elsewhere (--output)")
    mixes = {"training": config.data.dataset, "held out": config.data.validation}
    found = [gather(title, sources, config, options) for title, sources in mixes.items() if sources]
    if output is None:
        console = Console(width=max(Console().width, 100))
        for mix in found:
            show_mix(console, mix)
    else:
        write_report(output, config.name, found)
        print(f"wrote {output}")
    return 0
