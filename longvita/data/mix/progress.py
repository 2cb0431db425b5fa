"""Progress of data commands on standard error: bars on a terminal; elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from longvita.data.index.store import IndexProgress

SECONDS_BETWEEN_LINES = 60.0
"""Time between two lines where there is no bar, seconds."""


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; yields the function to call with the number of things done, of `total`."""
    with _bar(bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def indexing() -> Iterator[Callable[[IndexProgress], None]]:
    """Print how much has to be indexed, then show a bar of the bytes, the quarantined samples and the time left.

    Without a terminal, a line says the same after the first part, and then once a minute. Nothing is shown while
    nothing has to be indexed. Yields the function to call with the progress.
    """
    found, lines = bars.TextColumn("{task.fields[found]}"), IndexingLines()
    with _bar(bars.DownloadColumn(), bars.TransferSpeedColumn(), found, bars.TimeRemainingColumn()) as bar:
        task = bar.add_task("indexing", total=None, found="", visible=False)

        def show(progress: IndexProgress) -> None:
            lines.print_due(progress, is_first_only=not bar.disable)
            text = f"{progress.quarantined:,} quarantined"
            bar.update(task, completed=progress.done, total=progress.total, found=text, visible=True)

        yield show


class IndexingLines:
    """The lines of progress: what is to be done, and then how much is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._next = clock, 0.0
        self._start: float | None = None

    def print_due(self, progress: IndexProgress, is_first_only: bool = False) -> None:
        """Print the line that is due, if there is one."""
        if self._start is None:
            self._start = self._next = self._clock()
            print(_first_line(progress), file=sys.stderr, flush=True)
        elif not is_first_only and 0 < progress.done < progress.total and self._clock() >= self._next:
            self._next = self._clock() + SECONDS_BETWEEN_LINES
            print(_later_line(progress, self._clock() - self._start), file=sys.stderr, flush=True)


def _later_line(progress: IndexProgress, seconds: float) -> str:
    left = seconds * (progress.total / progress.done - 1)
    return (
        f"indexing: {progress.done / progress.total:.0%} of {decimal(progress.total)}, "
        f"{progress.quarantined:,} quarantined, about {_duration(left)} left"
    )


def _first_line(progress: IndexProgress) -> str:
    files = f"{progress.files:,} data file{'s' if progress.files > 1 else ''}"
    where = f", in {progress.processes} process{'es' if progress.processes > 1 else ''}" if progress.processes else ""
    return f"indexing {decimal(progress.total)} of {files} without a current index{where}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _bar(*columns: bars.ProgressColumn) -> bars.Progress:
    console, shown = Console(stderr=True), (bars.TextColumn("{task.description}"), bars.BarColumn(), *columns)
    return bars.Progress(*shown, console=console, transient=True, disable=not console.is_terminal)
