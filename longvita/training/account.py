"""The account of a run (longvita.data.account) among its processes: summed, written, shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.table import Table

from longvita.data.account import FILE_NAME, Account, Tally
from longvita.data.quarantine import reasons_text
from longvita.training.manifest import write_atomically


def add_up(account: Account, own: Tally) -> Account:
    """The account with the tallies of all processes; a collective over the whole world."""
    tallies: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(tallies, own)
    return account.plus(tallies)


def write_account(output: Path, report: dict[str, Any]) -> None:
    """Writes account.json of a run."""
    write_atomically(output / FILE_NAME, json.dumps(report, indent=1) + "\n")


def account_table(report: dict[str, Any]) -> Table:
    """What account.json holds, one row a source."""
    first, end = report["sequences"]
    table = Table(
        "source",
        title=f"samples of sequences {first:,} to {end:,}, see {FILE_NAME}",
        caption=f"each one that is set aside: {report['quarantine']}",
    )
    for name in ("planned", "delivered", "repeated"):
        table.add_column(name, justify="right")
    for name in ("set aside", "unusable"):
        table.add_column(name)
    for source, counts in report["sources"].items():
        numbers = (f"{counts[name]:,}" for name in ("planned", "delivered", "repeated"))
        table.add_row(source, *numbers, reasons_text(counts["set_aside"]), reasons_text(counts["unusable"]))
    return table
