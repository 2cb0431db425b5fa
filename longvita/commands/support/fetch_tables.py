"""The progress and the report of `longvita data fetch`."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import tqdm
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from longvita.config.schema import DatasetConfig
from longvita.data.errors import DataError
from longvita.data.fetch.download import Downloader
from longvita.data.fetch.wanted import FetchState, WantedFile, hub_data_sets

PROBLEMS = (FetchState.MISSING, FetchState.GATED, FetchState.FAILED)
"""States that make the exit code 1."""
MIN_WIDTH = 120
"""Of the table, characters."""


def download_with_progress(downloader: Downloader, files: Sequence[WantedFile], folder: Path, workers: int) -> None:
    """Download files, with a progress bar and a line for each on stderr. Raises DataError if the disk is too small."""
    total = sum(downloader.missing_bytes(file) for file in files)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DataError(
            f"{decimal(total)} are still to be downloaded, and the disk of {folder} has {decimal(free)} left: make "
            "room, give another folder (--to), or fetch a part (--source)"
        )
    done = itertools.count(1)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc=f"0 of {len(files)} files") as bar:

        def on_file(file: WantedFile) -> None:
            bar.set_description(f"{next(done)} of {len(files)} files")
            tqdm.write(f"{file.state} {file.target}", file=sys.stderr)

        downloader.fetch_all(files, workers, bar.update, on_file)


def print_report(sources: dict[str, DatasetConfig], files: Sequence[WantedFile], folder: Path, dry_run: bool) -> None:
    """A table, every file that did not come with the reason, and sources to download by hand."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    to_fetch = [file for file in files if file.state in (FetchState.WANTED, FetchState.FETCHED)]
    if dry_run:
        for file in to_fetch:
            _print(console, f"{decimal(file.size):>9}  {file.target}")
    states = [FetchState.WANTED if dry_run else FetchState.FETCHED, FetchState.THERE, *PROBLEMS]
    table = Table(*(Column(name, no_wrap=True) for name in ("source", "files", "size", *states)))
    for name in sources:
        own = [file for file in files if file.source == name]
        counts = [sum(file.state == state for file in own) for state in states]
        size = decimal(sum(file.size for file in own))
        table.add_row(escape(name), str(len(own)), size, *(str(count or "") for count in counts))
    console.print(table)
    total = decimal(sum(file.size for file in to_fetch))
    _print(console, f"{total} {'to fetch into' if dry_run else 'fetched into'} {folder}")
    problems: dict[str, list[str]] = {}
    for file in files:
        if file.state in PROBLEMS:
            problems.setdefault(f"\n{file.state}: {file.detail}", []).append(f"  {file.target}")
    for problem, names in problems.items():
        _print(console, "\n".join([problem, *names]))
    for name, dataset in sources.items():
        on_hub = hub_data_sets(dataset)
        pages = [place for place in dataset.found_at if place not in on_hub]
        if pages or not on_hub:
            by_hand = "".join(f"; get it by hand from {page}" for page in pages)
            _print(console, f"\n{name} is {'only partly' if on_hub else 'not'} on the Hub{by_hand}")


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
