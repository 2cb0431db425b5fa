"""A progress bar for the prefill of a long prompt, on the terminal's error stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def prefill_progress(tokens: int, visible: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that draws the bar for a number of tokens read so far, until all `tokens` are.

    Nothing is drawn unless `visible` and the error stream is a terminal.
    """
    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal))
    task = bar.add_task("", total=tokens)

    def show(done: int) -> None:
        bar.update(task, completed=done)
        if done >= tokens:
            bar.stop()

    with bar:
        yield show
