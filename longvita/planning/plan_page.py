"""A plan as one HTML page: the parts of each stage's memory, and the memory of the fullest stage through a step."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from longvita.pages import write_page
from longvita.planning import plan_text
from longvita.planning.activation_timeline import Moment
from longvita.planning.memory import StageMemory
from longvita.planning.plan import RunPlan
from longvita.planning.plan_text import gib

COLOURS = {
    "weights": "#4e79a7",
    "gradients": "#76b7b2",
    "optimizer": "#59a14f",
    "attention": "#f28e2b",
    "mlp": "#e15759",
    "layer inputs": "#ffbe7d",
    "vision": "#b07aa1",
    "vision features": "#d4a6c8",
    "embedding": "#9c755f",
    "head": "#edc948",
    "pipeline": "#86bcb6",
    "communication": "#8cd17d",
    "FP8 weights": "#a0cbe8",
    "KV cache": "#499894",
    "reserved": "#bab0ac",
}
STATE, STEP = "#bcbddc", "#6a51a3"
"""Colours of the curve: memory between steps, and activations of a step on top of it."""
WIDTH, HEIGHT, ROW = 900, 260, 26
POINTS = 600
"""Most points of the curve."""
_STYLE = "svg { font: 12px system-ui, sans-serif; } .key { display: inline-block; margin-right: 1em; }"


def write_plan(path: Path, plan: RunPlan) -> None:
    """Write the page."""
    parts = [f"<p>{plan.world_size} devices, {html.escape(plan.hardware.name)} of {gib(plan.hardware.memory)}: "
             f"{html.escape(plan_text.describe(plan.config))}.</p>"]  # fmt: skip
    if plan.refusal:
        parts.append(f"<p>{html.escape(str(plan.refusal))}</p>")
    if plan.stages:
        fullest = max(plan.stages, key=lambda stage: stage.total)
        parts += [
            f"<p><b>{html.escape(plan_text.verdict(plan))}</b></p>",
            f"<p>{html.escape(plan_text.time_text(plan.time))}</p>" if plan.time else "",
            "<h2>One rank of each stage</h2>",
            _key(),
            _bars(plan.stages, plan.hardware.memory),
            _stage_table(plan.stages),
            f"<h2>One micro batch on stage {fullest.stage}, the fullest</h2>",
            _curve(fullest, plan.hardware.memory),
        ]
    if plan.candidates:
        rows = [map(html.escape, plan_text.candidate_cells(one, plan.candidates[0])) for one in plan.candidates]
        table = _table(plan_text.CANDIDATE_COLUMNS, rows)
        parts += ["<h2>Layouts that fit</h2>", f"<p>{plan_text.heading(plan)}</p>", table]
    write_page(path, f"Plan of {plan.config.name}", parts, _STYLE)


def _key() -> str:
    names = "".join(
        f"<span class='key'><span style='background:{colour}'>&emsp;</span> {name}</span>"
        for name, colour in COLOURS.items()
    )
    return f"<p>{names}</p>"


def _bars(stages: Sequence[StageMemory], memory: int) -> str:
    scale = (WIDTH - 160) / max(memory, *(stage.total for stage in stages))
    shapes = []
    for row, stage in enumerate(stages):
        x, y = 70.0, row * ROW
        shapes.append(f"<text x='0' y='{y + 17}'>stage {stage.stage}</text>")
        parts = {"weights": stage.parameters, "gradients": stage.gradients, "optimizer": stage.optimizer}
        parts |= {**stage.by_kind, "KV cache": stage.kv_cache, "reserved": stage.reserved}
        for name, size in parts.items():
            title = f"<title>{name}: {gib(size)}</title>"
            shapes.append(
                f"<rect x='{x:.1f}' y='{y}' width='{size * scale:.1f}' height='{ROW - 4}' "
                f"fill='{COLOURS.get(name, '#888')}'>{title}</rect>"
            )
            x += size * scale
        shapes.append(f"<text x='{x + 6:.1f}' y='{y + 17}'>{gib(stage.total)}</text>")
    limit, height = 70 + memory * scale, len(stages) * ROW
    shapes.append(f"<text x='{limit:.1f}' y='{height + 14}' text-anchor='middle'>{gib(memory)}</text>")
    shapes.append(f"<line x1='{limit:.1f}' x2='{limit:.1f}' y1='0' y2='{height}' stroke='#000' stroke-dasharray='4'/>")
    return f"<svg width='{WIDTH}' height='{height + 20}'>{''.join(shapes)}</svg>"


def _stage_table(stages: Sequence[StageMemory]) -> str:
    shown = {field: title for field, title in plan_text.COLUMNS.items() if not title.startswith("incl. ")}
    rows = []
    for stage in stages:
        sizes = [gib(getattr(stage, field)) for field in shown]
        rows.append([str(stage.stage), str(stage.layers), f"{stage.parameter_count:,}", *sizes])
    return _table(["stage", "layers", "parameters", *shown.values()], rows)


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + f"</tr>{lines}</table>"


def _curve(stage: StageMemory, memory: int) -> str:
    """Draw the bytes through forward and backward pass, on top of those between steps."""
    moments = _thinned(stage.moments)
    state = stage.parameters + stage.gradients + stage.optimizer + stage.reserved + stage.kv_cache
    top = max(memory, stage.total)
    step = (WIDTH - 70) / max(len(moments) - 1, 1)
    y = [HEIGHT - (state + moment.size) / top * (HEIGHT - 20) for moment in moments]
    line = " ".join(f"{70 + index * step:.1f},{height:.1f}" for index, height in enumerate(y))
    base, limit = (HEIGHT - size / top * (HEIGHT - 20) for size in (state, memory))
    peak = min(range(len(y)), key=y.__getitem__) if y else 0
    label = html.escape(moments[peak].label) if moments else ""
    others = f"; {stage.waiting:.3g} other micro batches wait at the same time" if stage.waiting else ""
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT + 20}'>"
        f"<rect x='70' y='{base:.1f}' width='{WIDTH - 70}' height='{HEIGHT - base:.1f}' fill='{STATE}'/>"
        f"<polygon points='70,{base:.1f} {line} {WIDTH},{base:.1f}' fill='{STEP}'/>"
        f"<line x1='70' x2='{WIDTH}' y1='{limit:.1f}' y2='{limit:.1f}' stroke='#000' stroke-dasharray='4'/>"
        f"<text x='0' y='{limit + 4:.1f}'>{gib(memory)}</text><text x='0' y='{base + 4:.1f}'>{gib(state)}</text>"
        f"<text x='{min(70 + peak * step, WIDTH - 150):.1f}' y='{max(y[peak] - 4, 12) if y else 12:.1f}'>{label}</text>"
        f"<text x='70' y='{HEIGHT + 15}'>forward pass, then backward; at the bottom, the memory between steps"
        f"{others}</text></svg>"
    )


def _thinned(moments: Sequence[Moment]) -> list[Moment]:
    """Reduce the moments to about POINTS: the highest one of each run of equal length."""
    size = max(1, len(moments) // POINTS)
    runs = (moments[start : start + size] for start in range(0, len(moments), size))
    return [max(run, key=lambda moment: moment.size) for run in runs]
