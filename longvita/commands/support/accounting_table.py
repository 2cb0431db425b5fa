"""The table of a run's sample accounting."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from longvita.data.audit.sample_accounting import FILE_NAME as ACCOUNTING_FILE
from longvita.data.quarantine import reasons_text


def sample_accounting_table(report: dict[str, Any]) -> Table:
    """The content of sample_accounting.json as a table, one row a source."""
    table = Table(
        "source",
        title=f"samples of {report['sequences']:,} sequences, see {ACCOUNTING_FILE}",
        caption=f"each quarantined sample is listed in {report['quarantine']}",
    )
    for name in ("planned", "delivered", "repeated"):
        table.add_column(name, justify="right")
    for name in ("quarantined", "unusable"):
        table.add_column(name)
    for source, counts in report["sources"].items():
        numbers = (f"{counts[name]:,}" for name in ("planned", "delivered", "repeated"))
        table.add_row(source, *numbers, reasons_text(counts["quarantined"]), reasons_text(counts["unusable"]))
    return table
