"""A plan as one HTML page: the parts of each stage's memory, and the memory of the fullest stage through a step."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from longvita.pages import write_page
from longvita.planning.activation_timeline import Moment
from longvita.planning.memory import StageMemory
from longvita.planning.plan import RunPlan
from longvita.planning.plan_text import describe, duration, gib, heading, time_text, verdict
from longvita.planning.search import Candidate

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
             f"{html.escape(describe(plan.config))}.</p>"]  # fmt: skip
    if plan.refusal:
        parts.append(f"<p>{html.escape(str(plan.refusal))}</p>")
    if plan.stages:
        fullest = max(plan.stages, key=lambda stage: stage.total)
        parts += [
            f"<p><b>{html.escape(verdict(plan))}</b></p>",
            f"<p>{html.escape(time_text(plan.time))}</p>" if plan.time else "",
            "<h2>One rank of each stage</h2>",
            _key(),
            _bars(plan.stages, plan.hardware.memory),
            _table(plan.stages),
            f"<h2>One micro batch on stage {fullest.stage}, the fullest</h2>",
            _curve(fullest, plan.hardware.memory),
        ]
    if plan.candidates:
        parts += ["<h2>Layouts that fit</h2>", f"<p>{heading(plan)}</p>", _candidates(plan.candidates)]
    write_page(path, f"Plan of {plan.config.name}", parts, _STYLE)


def _parts(stage: StageMemory) -> dict[str, int]:
    state = {"weights": stage.parameters, "gradients": stage.gradients, "optimizer": stage.optimizer}
    return {**state, **stage.by_kind, "KV cache": stage.kv_cache, "reserved": stage.reserved}


def _key() -> str:
    return "<p>" + "".join(
        f"<span class='key'><span style='background:{colour}'>&emsp;</span> {name}</span>"
        for name, colour in COLOURS.items()
    ) + "</p>"  # fmt: skip


def _bars(stages: Sequence[StageMemory], memory: int) -> str:
    scale = (WIDTH - 160) / max(memory, *(stage.total for stage in stages))
    shapes = []
    for row, stage in enumerate(stages):
        x, y = 70.0, row * ROW
        shapes.append(f"<text x='0' y='{y + 17}'>stage {stage.stage}</text>")
        for name, size in _parts(stage).items():
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


def _table(stages: Sequence[StageMemory]) -> str:
    head = "<tr><th>stage</th><th>layers</th><th>parameters</th><th>weights</th><th>gradients</th><th>optimizer</th>"
    head += "<th>activations</th><th>KV cache</th><th>reserved</th><th>in the host</th><th>total</th></tr>"
    rows = []
    for stage in stages:
        sizes = [stage.parameters, stage.gradients, stage.optimizer, stage.activations, stage.kv_cache]
        sizes += [stage.reserved, stage.offloaded, stage.total]
        cells = [str(stage.stage), str(stage.layers), f"{stage.parameter_count:,}", *map(gib, sizes)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{head}{''.join(rows)}</table>"


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


def _candidates(candidates: Sequence[Candidate]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(describe(one.config))}</td><td>{gib(one.fullest.total)}</td>"
        f"<td>{duration(one.time.seconds)}</td><td>{one.time.mfu:.0%}</td>"
        f"<td>{html.escape(one.reason(candidates[0]))}</td></tr>"
        for one in candidates
    )
    return f"<table><tr><th>layout</th><th>memory</th><th>step</th><th>MFU</th><th>why</th></tr>{rows}</table>"
