"""report.html, one file without scripts: losses, packing fill, answers, stage 4's score by depth and length."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from longvita.pages import as_data_url, write_page
from longvita.training.metrics import read_metrics
from tools.quickstart.build import needle_place

_WIDTH, _HEIGHT, _MARGIN = 420, 160, 34
_STYLE = "img { image-rendering: pixelated; } .cell { color: #fff; }"


@dataclass(frozen=True)
class ReportAnswer:
    """An answer of the exported model."""

    name: str
    """File that the question is about."""
    question: str
    given: str
    """The model's answer."""
    right: str
    """The right answer."""
    shown: list[Image.Image]
    """The picture, or the frames of the video."""


def write_html(
    output: Path,
    report: dict,
    needles: dict[str, list[int]],
    film: Image.Image | None,
    answers: Sequence[ReportAnswer],
    runs: Sequence[str],
) -> None:
    """Write `output`/report.html; `runs` are the folders in `output` with the stages' metrics.

    needles: right and all answers of stage 4's sources; film: the picture of the needle task.
    """
    metrics = {run: [line for line in read_metrics(output / run) if "loss" in line] for run in runs}
    parts = [
        _stages(report),
        "<h2>Loss</h2>",
        *(_plot(run, lines, "loss", "nats a token") for run, lines in metrics.items()),
        "<h2>Packing fill</h2>",
        _fill(metrics),
        "<h2>Stage 4: right answers by depth and length</h2>",
        _needles(needles),
        _film(film),
        "<h2>Answers of the exported model</h2>",
        *(_answer(answer) for answer in answers),
    ]
    write_page(output / "report.html", "Long-VITA quickstart", parts, _STYLE)


def _stages(report: dict) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("stage", "layout", "tokens", "seconds", "loss", "held-out accuracy"))
    rows = "".join(
        f"<tr><td>{s['name']}</td><td>{s['layout']}</td><td>{s['sequence_length']}</td><td>{s['seconds']:.0f}</td>"
        f"<td>{s['loss']:.3f}</td><td>{s['accuracy']:.3f} of {s['questions']}</td></tr>"
        for s in report["stages"]
    )
    return (
        f"<table><tr>{head}</tr>{rows}</table>"
        f"<p>Stage 2 evaluated again after stage 4: {report['short_context_accuracy_after']:.3f}. Largest difference "
        f"of a logit of the exported folders: {report['export_max_abs_logit_difference']:.1e}. "
        f"{report['seconds'] / 60:.1f} minutes.</p>"
    )


def _plot(title: str, lines: Sequence[dict], key: str, unit: str) -> str:
    """A line of one metric over steps, as SVG."""
    steps, values = [line["step"] for line in lines], [line[key] for line in lines]
    if not steps:
        return ""
    highest = max(values) or 1.0
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    points = " ".join(
        f"{_MARGIN + width * step / steps[-1]:.1f},{_MARGIN + height * (1 - value / highest):.1f}"
        for step, value in zip(steps, values, strict=True)
    )
    bottom = _MARGIN + height
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='{key} of {title}'>"
        f"<path d='M{_MARGIN} {_MARGIN}V{bottom}H{_MARGIN + width}' fill='none' stroke='#999'/>"
        f"<polyline points='{points}' fill='none' stroke='#1f77b4' stroke-width='1.5'/>"
        f"<text x='2' y='{_MARGIN}' font-size='11'>{highest:.2f}</text>"
        f"<text x='2' y='{bottom}' font-size='11'>0</text>"
        f"<text x='{_MARGIN + width - 20}' y='{bottom + 16}' font-size='11'>{steps[-1]}</text></svg>"
        f"<figcaption>{title}: {unit} by step</figcaption></figure>"
    )


def _fill(metrics: dict[str, list[dict]]) -> str:
    rows = []
    for run, lines in metrics.items():
        tokens, padding = sum(line["tokens"] for line in lines), sum(line["padding_tokens"] for line in lines)
        share = tokens / max(tokens + padding, 1)
        bar = f"<svg width='200' height='12'><rect width='{200 * share:.0f}' height='12' fill='#1f77b4'/></svg>"
        rows.append(f"<tr><td>{run}</td><td>{bar}</td><td>{share:.1%}</td></tr>")
    return f"<table><tr><th>run</th><th></th><th>positions with samples</th></tr>{''.join(rows)}</table>"


def _needles(counts: dict[str, list[int]]) -> str:
    places = {needle_place(source): count for source, count in counts.items()}
    lengths, depths = sorted({frames for frames, _ in places}), sorted({depth for _, depth in places})
    head = "".join(f"<th>{frames} frames</th>" for frames in lengths)
    rows = "".join(
        f"<tr><td>depth {depth:.0%}</td>{''.join(_cell(*places[frames, depth]) for frames in lengths)}</tr>"
        for depth in depths
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _film(picture: Image.Image | None) -> str:
    if picture is None:
        return ""
    return (
        "<p>The same held-out digits in one film at each depth and length, by "
        "<code>longvita evaluate --task needle</code>:</p>"
        f"<img src='{as_data_url(picture)}' alt='share of needles found by depth and length'>"
    )


def _cell(right: int, asked: int) -> str:
    share = right / max(asked, 1)
    return f"<td class='cell' style='background:hsl({120 * share:.0f} 45% 38%)'>{right} of {asked}</td>"


def _answer(answer: ReportAnswer) -> str:
    pictures = "".join(f"<img src='{as_data_url(picture)}' width='56' height='56' alt=''>" for picture in answer.shown)
    said = html.escape(answer.given)
    mark = "right" if answer.given == answer.right else f"should be: {html.escape(answer.right)}"
    return (
        f"<figure>{pictures}<figcaption>{html.escape(answer.name)}: {html.escape(answer.question)} "
        f"<strong>{said}</strong> ({mark})</figcaption></figure>"
    )
