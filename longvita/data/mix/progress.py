"""Progress bars of data commands, on standard error if it is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich import progress as bars
from rich.console import Console

from longvita.config.schema import Config, DatasetConfig
from longvita.data.formats.paths import data_file
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexProgress, size_of
from longvita.data.mix.catalog import CatalogFile, open_file


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; yields the function to call with the number of things done, of `total`."""
    with _bar(bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def indexing(total_bytes: int) -> Iterator[Callable[..., CatalogFile]]:
    """Show a bar of the bytes indexed, speed, quarantined samples and time left; yields `open_file` with it."""
    found = bars.TextColumn("{task.fields[found]}")
    with _bar(bars.DownloadColumn(), bars.TransferSpeedColumn(), found, bars.TimeRemainingColumn()) as bar:
        task = bar.add_task("indexing", total=total_bytes, found="")
        before, quarantined = 0, 0

        def open_one(
            config: Config, source: str, dataset: DatasetConfig, path: str, processes: IndexProcessPool
        ) -> CatalogFile:
            nonlocal before, quarantined
            size = size_of(data_file(config.data, path))

            def show(progress: IndexProgress) -> None:
                done = before + size * progress.done // max(progress.total, 1)
                bar.update(task, completed=done, found=f"{quarantined + progress.quarantined:,} quarantined")

            bar.update(task, description=f"indexing {source}")
            file = open_file(config, source, dataset, path, processes, show)
            before, quarantined = before + size, quarantined + len(file.index.quarantined)
            bar.update(task, completed=before, found=f"{quarantined:,} quarantined")
            return file

        yield open_one


def _bar(*columns: bars.ProgressColumn) -> bars.Progress:
    console, shown = Console(stderr=True), (bars.TextColumn("{task.description}"), bars.BarColumn(), *columns)
    return bars.Progress(*shown, console=console, transient=True, disable=not console.is_terminal)
