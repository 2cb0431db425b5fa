"""What `longvita verify` compares, within which tolerances, and how it is told."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from longvita.config.layout_text import layout_text
from longvita.config.schema import LayoutConfig

TOLERANCES = {"image features": 2e-4, "logits": 2e-4, "loss": 1e-5, "gradients": 1e-3, "greedy tokens": 0.0}
"""Largest differences allowed: absolute, for gradients as a share of the tensor's largest one; tokens must be equal."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    difference: float | None
    """Largest difference; None when it was not made."""
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a comparison that was not made does not fail."""
        return self.difference is None or self.difference <= self.tolerance


def report(checks: Sequence[Check], source: str, layout: LayoutConfig, as_json: bool) -> None:
    """Prints the comparisons, as a table or as one JSON object."""
    passed = all(check.passed for check in checks)
    if as_json:
        entries = [{**dataclasses.asdict(check), "passed": check.passed} for check in checks]
        for entry in entries:
            if entry["difference"] == float("inf"):  # JSON has no infinity
                entry |= {"difference": None, "note": entry["note"] or "not a number, or of another shape"}
        print(json.dumps({"model": source, "layout": layout.model_dump(), "passed": passed, "checks": entries}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{source} at {layout_text(layout)}")
    for column in ("what", "largest difference", "tolerance", "", ""):
        table.add_column(column)
    for check in checks:
        difference = "-" if check.difference is None else f"{check.difference:.2e}"
        verdict = "-" if check.difference is None else ("ok" if check.passed else "BEYOND")
        table.add_row(check.name, difference, f"{check.tolerance:.0e}", verdict, check.note)
    Console(file=sys.stdout, width=120).print(table)
