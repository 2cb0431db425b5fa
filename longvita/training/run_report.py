"""What is left of a run when it ends: report.json, a picture of its losses, and the sample accounting."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.table import Table

from longvita.config.schema import Config
from longvita.data.audit.sample_accounting import FILE_NAME as ACCOUNTING_FILE
from longvita.data.audit.sample_accounting import OutcomeCounts, SampleAccounting
from longvita.data.quarantine import FILE_NAME as QUARANTINE_FILE
from longvita.data.quarantine import count_reasons, read_quarantine, reasons_text
from longvita.files import write_atomically
from longvita.training.metrics import read_metrics

REPORT = "report.json"
PICTURE = "loss.png"
_WINDOW = 20


def add_up(account: SampleAccounting, own: OutcomeCounts) -> SampleAccounting:
    """The account with the tallies of all processes; a collective over the whole world."""
    tallies: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(tallies, own)
    return account.plus(tallies)


def write_sample_accounting(output: Path, report: dict[str, Any]) -> None:
    """Writes sample_accounting.json of a run."""
    write_atomically(output / ACCOUNTING_FILE, json.dumps(report, indent=1) + "\n")


def sample_accounting_table(report: dict[str, Any]) -> Table:
    """What sample_accounting.json holds, one row a source."""
    table = Table(
        "source",
        title=f"samples of {report['sequences']:,} sequences, see {ACCOUNTING_FILE}",
        caption=f"each one that is set aside: {report['quarantine']}",
    )
    for name in ("planned", "delivered", "repeated"):
        table.add_column(name, justify="right")
    for name in ("set aside", "unusable"):
        table.add_column(name)
    for source, counts in report["sources"].items():
        numbers = (f"{counts[name]:,}" for name in ("planned", "delivered", "repeated"))
        table.add_row(source, *numbers, reasons_text(counts["quarantined"]), reasons_text(counts["unusable"]))
    return table


def write_report(output: Path, config: Config, iteration: int, reason: str) -> None:
    """Write report.json and loss.png of a run that ended after `iteration` steps for `reason`.

    Times, tokens and losses come from the metrics, samples set aside from the quarantine file, so those of earlier
    processes of the same run count.
    """
    lines = read_metrics(output)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation" in line]
    report = {
        "name": config.name,
        "reason": reason,
        "iterations": iteration,
        "layout": config.layout.model_dump(exclude_none=True),
        "sequence_length": config.data.sequence_length,
        "seconds": sum(line["seconds"] for line in steps),
        "tokens": sum(line["tokens"] for line in steps),
        "tiles": sum(line["tiles"] for line in steps),
        "loss": _mean([line["loss"] for line in steps[-_WINDOW:]]),
        "validation": evaluations[-1]["validation"] if evaluations else {},
        "quarantined": quarantined(output),
    }
    write_atomically(output / REPORT, json.dumps(report, indent=1) + "\n")
    if steps:
        draw_losses(output / PICTURE, config.name, steps, evaluations)


def quarantined(output: Path) -> dict[str, Any]:
    """How many samples the run set aside, by reason and by source."""
    entries = read_quarantine(output / QUARANTINE_FILE)
    return {
        "samples": len(entries),
        "reasons": count_reasons(entries),
        "sources": dict(Counter(entry.source for entry in entries).most_common()),
    }


def draw_losses(path: Path, title: str, steps: Sequence[dict], evaluations: Sequence[dict]) -> None:
    """A picture of the loss by step: every step in grey, the running mean, and the held-out losses as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    axes.plot(numbers, losses, color="0.8", linewidth=0.8, label="training")
    axes.plot(numbers, running_mean(losses, _WINDOW), linewidth=1.5, label=f"training, mean of {_WINDOW}")
    for source in sorted({source for line in evaluations for source in line["validation"]}):
        points = [(line["step"], line["validation"][source]) for line in evaluations if source in line["validation"]]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"held out: {source}")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to window - 1 values before it."""
    return [_mean(values[max(0, end - window) : end]) or 0.0 for end in range(1, len(values) + 1)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
