"""`longvita data fetch`: download the data files of a mix, and archives of its images and videos."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub.utils import WeakFileLock, tqdm
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from longvita.config.schema import Config, DatasetConfig
from longvita.data.errors import DataError
from longvita.data.fetch.download import Downloader
from longvita.data.fetch.wanted import FetchState, WantedFile, choose_sources, hub_data_sets, wanted_files

PROBLEMS = (FetchState.MISSING, FetchState.GATED, FetchState.FAILED)
"""States that make the exit code 1."""
MIN_WIDTH = 120
"""Of the table, characters."""


def fetch(
    config: Config,
    sources: Sequence[str] = (),
    folder: str | None = None,
    media: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    workers: int = 4,
    as_json: bool = False,
) -> int:
    """Fill a folder and print the state of each file; returns exit code 0 if all came (or would), 1 if some did not.

    sources: names of sources, all when empty. folder: data.data_root when absent. media: fetch archives of images and
    videos too. workers: files that are fetched at once.

    Raises DataError if a file would lie outside the folder, the disk is too small, or another fetch fills the folder.
    """
    chosen = choose_sources(config, sources)
    wanted = wanted_files(config, chosen, media)
    root = Path(folder or config.data.data_root).expanduser()
    downloader = Downloader(root, endpoint)
    with contextlib.nullcontext() if dry_run else only_fetch(root):
        files = downloader.list_files(wanted)
        for file in files:
            downloader.check(file, record=not dry_run)
        missing = [file for file in files if file.state == FetchState.WANTED]
        if missing and not dry_run:
            _download(downloader, missing, root, workers)
    if as_json:
        facts = {name: {"found_at": dataset.found_at, "licence": dataset.licence} for name, dataset in chosen.items()}
        keys = ("source", "repository", "path", "target", "state", "detail")
        rows = [{**{key: getattr(file, key) for key in keys}, "bytes": file.size} for file in files]
        print(json.dumps({"folder": str(root), "dry_run": dry_run, "sources": facts, "files": rows}))
    else:
        _print_report(chosen, files, root, dry_run)
    return int(any(file.state in PROBLEMS for file in files))


@contextlib.contextmanager
def only_fetch(folder: Path) -> Iterator[None]:
    """Lock a folder against other fetches. Raises DataError if one is running."""
    lock = folder / ".cache" / "huggingface" / "fetch.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.1))
        except TimeoutError as error:
            raise DataError(f"another `longvita data fetch` is filling {folder}; wait for it, or end it") from error
        yield


def _download(downloader: Downloader, files: Sequence[WantedFile], folder: Path, workers: int) -> None:
    """Download files, with a progress bar and a line for each on stderr. Raises DataError if the disk is too small."""
    total = sum(downloader.missing_bytes(file) for file in files)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DataError(
            f"{decimal(total)} are to come, and the disk of {folder} has {decimal(free)} left: make room, give "
            "another folder (--to), or fetch a part (--source)"
        )
    done = itertools.count(1)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc=f"0 of {len(files)} files") as bar:

        def on_file(file: WantedFile) -> None:
            bar.set_description(f"{next(done)} of {len(files)} files")
            tqdm.write(f"{file.state} {file.target}", file=sys.stderr)

        downloader.fetch_all(files, workers, bar.update, on_file)


def _print_report(sources: dict[str, DatasetConfig], files: Sequence[WantedFile], folder: Path, dry_run: bool) -> None:
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
