"""Bars of the commands that look at data, on the terminal's error stream; nothing is drawn elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from longvita.config.schema import Config, DatasetConfig
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexProgress, size_of
from longvita.data.mix.catalog import CatalogFile, open_file
from longvita.data.mix.paths import data_file


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of things that are done, of `total` in all."""
    with _bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def indexing(total_bytes: int) -> Iterator[Callable[..., CatalogFile]]:
    """`open_file`, which shows how far the index is: bytes of all files, speed, samples set aside, time left."""
    with _bar(
        DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.fields[found]}"), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("indexing", total=total_bytes, found="")
        before, quarantined = 0, 0

        def open_one(
            config: Config,
            source: str,
            dataset: DatasetConfig,
            path: str,
            processes: IndexProcessPool,
        ) -> CatalogFile:
            nonlocal before, quarantined
            size = size_of(data_file(config.data, path))

            def show(progress: IndexProgress) -> None:
                done = before + size * progress.done // max(progress.total, 1)
                bar.update(task, completed=done, found=f"{quarantined + progress.quarantined:,} set aside")

            bar.update(task, description=f"indexing {source}")
            file = open_file(config, source, dataset, path, processes, show)
            before, quarantined = before + size, quarantined + len(file.index.quarantined)
            bar.update(task, completed=before, found=f"{quarantined:,} set aside")
            return file

        yield open_one


def _bar(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), *columns, console=console, transient=True, disable=not console.is_terminal)
