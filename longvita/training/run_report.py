"""The report of a run: lines printed at its start and end, report.json, loss.png and sample_accounting.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.data.audit.sample_accounting import FILE_NAME as ACCOUNTING_FILE
from longvita.data.audit.sample_accounting import PLANNED, SampleAccounting
from longvita.data.loader import Loader
from longvita.data.mix.quarantine_limit import MIN_SAMPLES, limit_of
from longvita.data.quarantine import FILE_NAME as QUARANTINE_FILE
from longvita.data.quarantine import count_reasons, read_quarantine, reasons_text
from longvita.files import write_atomically
from longvita.training.events import read_events
from longvita.training.metrics import Metrics, read_metrics
from longvita.training.signals import StopReason

REPORT = "report.json"
PICTURE = "loss.png"
_WINDOW = 20


def start_text(state: TrainingState, resumed: Path | None) -> str:
    """The line that a run prints at its start: where it starts, its layout, size and device."""
    config, groups = state.config, state.groups
    layout = f"TP {groups.tp_size}, PP {groups.pp_size}, CP {groups.cp_size}, DP {groups.dp_size}"
    start = f"resumes from {resumed}" if resumed else "starts"
    weights = sum(parameter.numel() for model in state.models for parameter in model.parameters())
    return (
        f"{config.name}: {start} at step {state.iteration} of {config.training.train_iterations}, {layout}, "
        f"{weights:,} parameters on the first process, {state.platform.describe()}"
    )


def data_change_text(state: TrainingState, resumed: Path | None) -> str:
    """The warning that a run prints when its data are not those of its checkpoint."""
    return (
        f"the data are not those that {resumed} was trained on (files grew, changed or were fixed). From sequence "
        f"{state.consumed_sequences:,} on the order is another one; samples of this epoch may come twice or never; "
        f"{ACCOUNTING_FILE} lists the change"
    )


def decode_failures_text(config: Config, accounting: SampleAccounting) -> str:
    """The warning that a run prints at a checkpoint if sources lose too many samples when they are decoded; or none."""
    lines = []
    for source, dataset in config.data.dataset.items():
        counts = accounting.of_source(source)
        failed, limit = sum(counts["quarantined"].values()), limit_of(config, dataset)
        if counts[PLANNED] >= MIN_SAMPLES and failed > limit * counts[PLANNED]:
            lines.append(
                f"{failed:,} of the {counts[PLANNED]:,} samples of source {source!r} so far could not be read or "
                f"decoded ({reasons_text(counts['quarantined'])}); max_quarantined is {limit:g}; see "
                f"{QUARANTINE_FILE}"
            )
    return "\n".join(lines)


def finish_report(
    state: TrainingState,
    reason: StopReason,
    loader: Loader | None,
    metrics: Metrics,
    accounting_table: Callable[[dict[str, Any]], RenderableType],
) -> None:
    """Write the files of a run that ended, and print its sample accounting and why it stopped; on rank 0 alone.

    loader: the run's loader; None when no step was left to do.
    accounting_table: makes what is printed of the content of sample_accounting.json.
    """
    output, word = Path(state.config.output), "complete" if reason is StopReason.NONE else reason.name.lower()
    write_report(output, state.config, state.iteration, word)
    if loader is not None:
        accounting = state.sample_accounting.report(loader.catalog, state.consumed_sequences)
        write_atomically(output / ACCOUNTING_FILE, json.dumps(accounting, indent=1) + "\n")
        metrics.say(accounting_table(accounting))
    if reason is not StopReason.NONE:
        metrics.say(
            f"stopped by {word.replace('_', ' ')} after step {state.iteration}, saved; "
            f"the same command resumes from there (exit code {reason.exit_code})"
        )


def write_report(output: Path, config: Config, iteration: int, reason: str) -> None:
    """Write report.json and loss.png of a run that ended after `iteration` steps for `reason`.

    Times, tokens and losses come from the metrics, quarantined samples from the quarantine file, so those of earlier
    processes of the same run count.
    """
    lines = read_metrics(output)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation" in line]
    entries = read_quarantine(output / QUARANTINE_FILE)
    report = {
        "name": config.name,
        "reason": reason,
        "iterations": iteration,
        "skipped_steps": sum("skipped" in line for line in lines),
        "events": dict(Counter(event["event"] for event in read_events(output))),
        "layout": config.layout.model_dump(exclude_none=True),
        "sequence_length": config.data.sequence_length,
        **{name: sum(line[name] for line in steps) for name in ("seconds", "tokens", "tiles")},
        "loss": _mean([line["loss"] for line in steps[-_WINDOW:]]),
        "validation": evaluations[-1]["validation"] if evaluations else {},
        "quarantined": {
            "samples": len(entries),
            "reasons": count_reasons(entries),
            "sources": dict(Counter(entry.source for entry in entries).most_common()),
        },
    }
    write_atomically(output / REPORT, json.dumps(report, indent=1) + "\n")
    if steps:
        draw_losses(output / PICTURE, config.name, steps, evaluations)


def draw_losses(path: Path, title: str, steps: Sequence[dict], evaluations: Sequence[dict]) -> None:
    """Draw the loss by step: every step in grey, the running mean, and the held-out losses as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
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
