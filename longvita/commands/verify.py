"""`longvita verify`: compare a model with golden vectors at one layout, and print the checks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longvita.commands.support.model_process import check_sizes, joined_replica, launch_replica
from longvita.config import dump
from longvita.config.layout_text import layout_text, parse_layout
from longvita.config.schema import Config, LayoutConfig
from longvita.processes import is_first_process

if TYPE_CHECKING:
    from longvita.verify.compare import Check


def verify(model: str, golden: str, layout: str, platform: str = "auto", as_json: bool = False) -> int:
    """Compare a model with golden vectors at one layout: 0 when all is within tolerance, else 1."""
    from longvita.checkpoint.sources import model_config
    from longvita.verify.golden import golden_config, load_golden

    config = golden_config(model_config(model), parse_layout(layout), load_golden(golden), platform)
    check_sizes(config)
    payload = {"source": model, "golden": golden, "config": dump(config), "json": as_json}
    return launch_replica("longvita.commands.verify:verify_process", payload, config)


def verify_process(payload: dict[str, Any]) -> int:
    """Compare in one rank; the first one prints."""
    config = Config.model_validate(payload["config"])
    with joined_replica(config) as (groups, platform):
        from longvita.verify.compare import compare
        from longvita.verify.golden import load_golden

        checks = compare(payload["source"], load_golden(payload["golden"]), config, groups, platform)
        if is_first_process():
            print_checks(checks, payload["source"], config.layout, payload["json"])
    any_made = any(check.difference is not None for check in checks)
    return 0 if any_made and all(check.passed for check in checks) else 1


def print_checks(checks: Sequence[Check], source: str, layout: LayoutConfig, as_json: bool) -> None:
    """Print the checks, as a table or as one JSON object."""
    if as_json:
        passed = all(check.passed for check in checks)
        entries = [{**dataclasses.asdict(check), "passed": check.passed} for check in checks]
        for entry in entries:
            if entry["difference"] == float("inf"):  # JSON has no infinity
                entry |= {"difference": None, "note": entry["note"] or "not a number, or of another shape"}
        print(json.dumps({"model": source, "layout": layout.model_dump(), "passed": passed, "checks": entries}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{source} at {layout_text(layout)}")
    for column in ("check", "largest difference", "tolerance", "", ""):
        table.add_column(column)
    for check in checks:
        difference = "-" if check.difference is None else f"{check.difference:.2e}"
        verdict = "-" if check.difference is None else ("ok" if check.passed else "BEYOND")
        table.add_row(check.name, difference, f"{check.tolerance:.0e}", verdict, check.note)
    Console(file=sys.stdout, width=120).print(table)
