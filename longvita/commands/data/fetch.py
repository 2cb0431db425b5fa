"""The work of `longvita data fetch`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from longvita.config.schema import Config, DatasetConfig
from longvita.data.errors import DataError
from longvita.data.fetch.filling import Filler, Outcome
from longvita.data.fetch.hub import TROUBLES, Hub, HubFile, State
from longvita.data.fetch.ledger import alone
from longvita.data.fetch.progress import fetch_progress
from longvita.data.fetch.report import BAD, as_json, print_report
from longvita.data.fetch.wanted import (
    Wanted,
    choose_sources,
    hub_data_sets,
    matching,
    wanted_archives,
    wanted_data_files,
)

ALL_THERE, SOME_NOT = 0, 1
"""Exit codes."""
NARROWEST = 120
"""Least width of the table, characters."""

Pair = tuple[Wanted, HubFile]


@dataclass(frozen=True)
class FetchOptions:
    """What `longvita data fetch` is asked for."""

    sources: Sequence[str] = ()
    """Names of sources; all when empty."""
    folder: str | None = None
    """Folder to fill; data.data_root when absent."""
    media: bool = False
    """Whether archives of pictures and videos are fetched too."""
    dry_run: bool = False
    """Whether only to say what would be fetched."""
    endpoint: str | None = None
    """Address of the Hub."""
    workers: int = 4
    """Files that are fetched at once."""
    as_json: bool = False


def fetch(config: Config, options: FetchOptions) -> int:
    """Fills the folder and prints what became of each file; 0 if all are there (or would be), 1 if not.

    Raises DataError if a file would lie outside the folder, the disk is too small, or another fetch fills the folder.
    """
    sources = choose_sources(config, options.sources)
    wanted = wanted_data_files(config, sources)
    folder = Path(options.folder or config.data.data_root).expanduser()
    hub = Hub(options.endpoint)
    with contextlib.nullcontext() if options.dry_run else alone(folder):
        outcomes = _fetch(hub, Filler(hub, folder), folder, sources, wanted, options)
    if options.as_json:
        print(as_json(sources, outcomes, str(folder), options.dry_run))
    else:
        console = Console()
        console.width = max(console.width, NARROWEST)
        print_report(console, sources, outcomes, str(folder), options.dry_run)
    return SOME_NOT if any(outcome.state in BAD for outcome in outcomes) else ALL_THERE


def _fetch(
    hub: Hub,
    filler: Filler,
    folder: Path,
    sources: dict[str, DatasetConfig],
    wanted: Sequence[Wanted],
    options: FetchOptions,
) -> list[Outcome]:
    """Asks the hub what it has, looks at what is here, and downloads the rest."""
    pairs, outcomes = describe(hub, wanted)
    if options.media:
        more, troubles = describe_media(hub, sources)
        pairs += more
        outcomes += troubles
    looked = [filler.look(item, file, remember=not options.dry_run) for item, file in pairs]
    missing = [pair for pair, outcome in zip(pairs, looked) if outcome.state == State.WANTED]
    if options.dry_run or not missing:
        return [*outcomes, *looked]
    _check_room(folder, sum(filler.lacking(item, file) for item, file in missing))
    fetched = _download(filler, missing, options.workers)
    return [*outcomes, *(outcome for outcome in looked if outcome.state != State.WANTED), *fetched]


def describe(hub: Hub, wanted: Sequence[Wanted]) -> tuple[list[Pair], list[Outcome]]:
    """The wanted files that the Hub has, and what is wrong with the others."""
    pairs: list[Pair] = []
    outcomes: list[Outcome] = []
    for repository in dict.fromkeys(item.repository for item in wanted):
        own = [item for item in wanted if item.repository == repository]
        try:
            found = hub.describe(repository, [item.path for item in own])
        except TROUBLES as error:
            outcomes += [
                Outcome(item, state, detail=text) for item in own for state, text in [hub.explain(error, repository)]
            ]
            continue
        pairs += [(item, found[item.path]) for item in own if item.path in found]
        more, lost = _describe_patterns(hub, repository, [item for item in own if item.path not in found])
        pairs += more
        outcomes += lost
    return list({item.target: (item, file) for item, file in reversed(pairs)}.values())[::-1], outcomes


def _describe_patterns(hub: Hub, repository: str, wanted: Sequence[Wanted]) -> tuple[list[Pair], list[Outcome]]:
    """Files that patterns and folders stand for, and those that are nothing of the data set's."""
    if not wanted:
        return [], []
    try:
        there = hub.list_all(repository)
    except TROUBLES as error:
        state, text = hub.explain(error, repository)
        return [], [Outcome(item, state, detail=text) for item in wanted]
    pairs: list[Pair] = []
    outcomes: list[Outcome] = []
    for item in wanted:
        found = matching(item, there)
        pairs += [(one, there[one.path]) for one in found]
        if not found:
            outcomes.append(Outcome(item, State.MISSING, detail=f"not at {hub.page(repository)}"))
    return pairs, outcomes


def describe_media(hub: Hub, sources: dict[str, DatasetConfig]) -> tuple[list[Pair], list[Outcome]]:
    """The archives of the data sets that the sources are found at, each once, and the data sets that can't be read."""
    pairs: list[Pair] = []
    outcomes: list[Outcome] = []
    places: dict[str, str] = {}
    for name, dataset in sources.items():
        for place in hub_data_sets(dataset):
            places.setdefault(place, name)
    for repository, source in places.items():
        try:
            found = hub.list_all(repository)
        except TROUBLES as error:
            state, detail = hub.explain(error, repository)
            outcomes.append(Outcome(Wanted(source, repository, "", repository), state, detail=detail))
            continue
        pairs += [(item, found[item.path]) for item in wanted_archives(source, repository, found)]
    return pairs, outcomes


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{decimal(needed)} are to come, and the disk of {folder} has {decimal(free)} left: make room, give "
            "another folder (--to), or fetch a part (--source)"
        )


def _download(filler: Filler, pairs: Sequence[Pair], workers: int) -> list[Outcome]:
    with fetch_progress(len(pairs), sum(file.size for _, file in pairs)) as reporter:

        def one(pair: Pair) -> Outcome:
            outcome = filler.fetch(*pair, reporter.on_bytes)
            reporter.on_file(outcome)
            return outcome

        return _in_threads(one, pairs, workers, filler.stop)


def _in_threads(
    work: Callable[[Pair], Outcome], pairs: Sequence[Pair], workers: int, stop: Callable[[], None]
) -> list[Outcome]:
    """The outcomes in the order of the pairs. An interrupt, or an error, ends the threads at their next bytes."""
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(work, pairs))
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
