"""`longvita verify`: compare a model with golden vectors at one layout, and print the checks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvita.commands.support.options import JSONOption, LayoutOption, ModelArgument, PlatformOption, in_home
from longvita.processes import EXIT_COMPLETE, EXIT_FAILED, is_first_process

if TYPE_CHECKING:
    from longvita.config.schema import LayoutConfig
    from longvita.verify.compare import Check


def verify(
    model: ModelArgument,
    golden: Annotated[
        str,
        typer.Option(help="Folder with golden.safetensors and golden.json.", show_default=False, callback=in_home),
    ],
    layout: LayoutOption = "tp=1",
    platform: PlatformOption = "auto",
    as_json: JSONOption = False,
) -> int:
    """Compare features, logits, loss, gradients and greedy tokens with golden vectors; exit code 1 beyond tolerance."""
    from longvita.checkpoint.hf.hub import check_name

    check_name(model)
    from longvita.checkpoint.sources import model_config
    from longvita.commands.support.model_ranks import launch_replica
    from longvita.config.layout_text import parse_layout
    from longvita.verify.golden import golden_config, load_golden

    config = golden_config(model_config(model), parse_layout(layout), load_golden(golden), platform)
    payload = {"source": model, "golden": golden, "json": as_json}
    return launch_replica("longvita.commands.verify:verify_rank", payload, config)


def verify_rank(payload: dict[str, Any]) -> int:
    """The body of a rank; the first one prints."""
    from longvita.commands.support.model_ranks import joined_replica

    with joined_replica(payload) as (config, groups, platform):
        from longvita.verify.compare import compare
        from longvita.verify.golden import load_golden

        checks = compare(payload["source"], load_golden(payload["golden"]), config, groups, platform)
        if is_first_process():
            print_checks(checks, payload["source"], config.layout, payload["json"])
    any_made = any(check.difference is not None for check in checks)
    return EXIT_COMPLETE if any_made and all(check.passed for check in checks) else EXIT_FAILED


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

    from longvita.config.layout_text import layout_text

    table = Table(title=f"{source} at {layout_text(layout)}")
    for column in ("check", "largest difference", "tolerance", "", ""):
        table.add_column(column)
    for check in checks:
        difference = "-" if check.difference is None else f"{check.difference:.2e}"
        verdict = "-" if check.difference is None else ("ok" if check.passed else "BEYOND")
        table.add_row(check.name, difference, f"{check.tolerance:.0e}", verdict, check.note)
    Console(file=sys.stdout, width=120).print(table)
