"""Bytes, speed and time left of a fetch, on the error stream."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from longvita.data.fetch.filling import Outcome


@dataclass(frozen=True)
class Reporter:
    """What the threads that download call; any of them may."""

    on_bytes: Callable[[int], None]
    """Takes the number of bytes that came."""
    on_file: Callable[[Outcome], None]
    """Takes what became of a file."""


@contextlib.contextmanager
def fetch_progress(files: int, total: int) -> Iterator[Reporter]:
    """A bar over `total` bytes of `files` files, on a terminal; elsewhere one line a file."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(f"0 of {files} files", total=total)
    ended = 0
    guard = threading.Lock()

    def on_file(outcome: Outcome) -> None:
        nonlocal ended
        with guard:
            ended += 1
            bar.update(task, description=f"{ended} of {files} files")
        console.print(f"{outcome.state} {outcome.wanted.target}", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield Reporter(lambda number: bar.advance(task, number), on_file)
