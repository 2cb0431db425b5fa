"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from longvita.planning.memory import StageMemory
from longvita.planning.plan import RunPlan
from longvita.planning.plan_text import describe, duration, gib, heading, time_text, verdict
from longvita.planning.search import Candidate

COLUMNS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "vision_features": "incl. features",
    "loss_head": "incl. head",
    "communication": "incl. buffers",
    "kv_cache": "KV cache",
    "reserved": "reserved",
    "offloaded": "in the host",
    "total": "total",
}
"""Fields of StageMemory and their titles."""


def show(plan: RunPlan, console: Console) -> None:
    """Print tables and verdict."""
    write = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    hardware = plan.hardware
    write(
        f"{plan.config.name} on {plan.world_size} x {hardware.name} of {gib(hardware.memory)}: {describe(plan.config)}"
    )
    if plan.refusal:
        write(str(plan.refusal))
    if plan.stages:
        console.print(_stage_table(plan.stages))
    if plan.time is not None:
        write(time_text(plan.time))
    if plan.stages:
        write(verdict(plan))
    if not plan.candidates and not plan.fits and plan.time is not None:
        write("No layout of so many of these devices fits.")
    if plan.candidates:
        write(heading(plan))
        console.print(_candidate_table(plan.candidates))
        write("The first as overrides:\n" + " ".join(plan.candidates[0].overrides))


def _stage_table(stages: Sequence[StageMemory]) -> Table:
    shown = [name for name in COLUMNS if any(getattr(stage, name) for stage in stages)]
    table = Table("stage", "layers", *(COLUMNS[name] for name in shown), "fullest with")
    for stage in stages:
        numbers = [gib(getattr(stage, name)) for name in shown]
        table.add_row(str(stage.stage), str(stage.layers), *numbers, stage.contents)
    return table


def _candidate_table(candidates: Sequence[Candidate]) -> Table:
    table = Table("", "layout", "memory", "step", "MFU", "why")
    for number, one in enumerate(candidates, 1):
        step, mfu = duration(one.time.seconds), f"{one.time.mfu:.0%}"
        table.add_row(
            str(number), describe(one.config), gib(one.fullest.total), step, mfu, one.reason(candidates[0])
        )  # fmt: skip
    return table
