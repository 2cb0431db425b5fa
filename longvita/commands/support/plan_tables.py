"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from longvita.planning import plan_text
from longvita.planning.memory import StageMemory
from longvita.planning.plan import RunPlan
from longvita.planning.plan_text import gib


def show(plan: RunPlan, console: Console) -> None:
    """Print tables and plan_text.verdict."""
    write = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    hardware, layout = plan.hardware, plan_text.describe(plan.config)
    write(f"{plan.config.name} on {plan.world_size} x {hardware.name} of {gib(hardware.memory)}: {layout}")
    if plan.refusal:
        write(str(plan.refusal))
    if plan.stages:
        console.print(_stage_table(plan.stages))
    if plan.time is not None:
        write(plan_text.time_text(plan.time))
    if plan.stages:
        write(plan_text.verdict(plan))
    if not plan.candidates and not plan.fits and plan.time is not None:
        write("No layout of so many of these devices fits.")
    if plan.candidates:
        write(plan_text.heading(plan))
        table = Table("", *plan_text.CANDIDATE_COLUMNS)
        for number, one in enumerate(plan.candidates, 1):
            table.add_row(str(number), *plan_text.candidate_cells(one, plan.candidates[0]))
        console.print(table)
        write("The first as overrides:\n" + " ".join(plan.candidates[0].overrides))


def _stage_table(stages: Sequence[StageMemory]) -> Table:
    shown = [name for name in plan_text.COLUMNS if any(getattr(stage, name) for stage in stages)]
    table = Table("stage", "layers", *(plan_text.COLUMNS[name] for name in shown), "fullest with")
    for stage in stages:
        numbers = [gib(getattr(stage, name)) for name in shown]
        table.add_row(str(stage.stage), str(stage.layers), *numbers, stage.contents)
    return table
