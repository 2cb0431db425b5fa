"""The scores of `longvita evaluate` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from longvita.evaluation.video_mme import BREAKDOWNS


def show_scores(scores: dict[str, Any], console: Console) -> None:
    """Print the scores as tables."""
    if "by_length_and_depth" in scores:
        cells = scores["by_length_and_depth"]
        table = Table("frames", *(f"depth {float(depth):.0%}" for depth in next(iter(cells.values()))))
        table.title = "needles found"
        for length, by_depth in cells.items():
            table.add_row(length, *(f"{cell['right']} of {cell['asked']}" for cell in by_depth.values()))
    else:
        table = Table("", "right", "asked", "accuracy", title=scores["task"])
        rows = [("overall", scores["overall"])]
        rows += [(f"{column}: {value}", part) for column in BREAKDOWNS[:3] for value, part in scores[column].items()]
        for name, part in rows:
            table.add_row(name, str(part["right"]), str(part["asked"]), f"{part['accuracy']:.1%}")
    console.print(table)
    overall = scores["overall"]
    console.print(f"accuracy {overall['accuracy']:.4f} ({overall['right']} of {overall['asked']})", highlight=False)
    if scores.get("unclear"):
        console.print(f"{scores['unclear']} answers name no single option and count as wrong", highlight=False)
    if scores["failed"]:
        text = f"{scores['failed']} items could not be asked and count as wrong: their reasons are in the answers"
        console.print(f'{text} under "error"; the same command asks them again', highlight=False)
