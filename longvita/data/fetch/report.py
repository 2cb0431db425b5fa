"""What `longvita data fetch` says at its end: a table, what went wrong, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from longvita.config.schema import DatasetConfig
from longvita.data.fetch.filling import Outcome
from longvita.data.fetch.hub import State
from longvita.data.fetch.wanted import hub_data_sets, pages

BAD = (State.MISSING, State.GATED, State.FAILED)
"""States that make the command end with exit code 1."""


def print_report(
    console: Console, sources: dict[str, DatasetConfig], outcomes: Sequence[Outcome], folder: str, dry_run: bool
) -> None:
    """The table, every file that did not come with the reason, and what must be got by hand."""
    if dry_run:
        for outcome in outcomes:
            if outcome.state == State.WANTED:
                _say(console, f"{decimal(outcome.size):>9}  {outcome.wanted.target}")
    console.print(_table(sources, outcomes, dry_run))
    wanted = sum(outcome.size for outcome in outcomes if outcome.state in (State.WANTED, State.FETCHED))
    _say(console, f"{decimal(wanted)} {'to fetch into' if dry_run else 'fetched into'} {folder}")
    for state, detail in dict.fromkeys((o.state, o.detail) for o in outcomes if o.state in BAD):
        names = [outcome.wanted.target for outcome in outcomes if (outcome.state, outcome.detail) == (state, detail)]
        _say(console, "\n".join([f"\n{state}: {detail}", *(f"  {name}" for name in names)]))
    for name, dataset in sources.items():
        if not hub_data_sets(dataset):
            _say(console, f"\n{name} is not on the Hub{_by_hand(dataset)}")
        elif pages(dataset):
            _say(console, f"\n{name} is only partly on the Hub{_by_hand(dataset)}")


def _by_hand(dataset: DatasetConfig) -> str:
    return "".join(f"; get it by hand from {page}" for page in pages(dataset))


def _table(sources: dict[str, DatasetConfig], outcomes: Sequence[Outcome], dry_run: bool) -> Table:
    states = [State.WANTED if dry_run else State.FETCHED, State.THERE, *BAD]
    table = Table(*(Column(name, no_wrap=True) for name in ("source", "files", "size", *states)))
    for name in sources:
        own = [outcome for outcome in outcomes if outcome.wanted.source == name]
        counts = [sum(outcome.state == state for outcome in own) for state in states]
        size = decimal(sum(outcome.size for outcome in own))
        table.add_row(escape(name), str(len(own)), size, *(str(count or "") for count in counts))
    return table


def as_json(sources: dict[str, DatasetConfig], outcomes: Sequence[Outcome], folder: str, dry_run: bool) -> str:
    """The same for programs; sizes are bytes."""
    files = [
        {
            "source": outcome.wanted.source,
            "repository": outcome.wanted.repository,
            "path": outcome.wanted.path,
            "target": outcome.wanted.target,
            "bytes": outcome.size,
            "state": outcome.state,
            "detail": outcome.detail,
        }
        for outcome in outcomes
    ]
    facts = {name: {"found_at": dataset.found_at, "licence": dataset.licence} for name, dataset in sources.items()}
    return json.dumps({"folder": folder, "dry_run": dry_run, "sources": facts, "files": files})


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
