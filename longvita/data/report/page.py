"""The data report as one HTML page that contains its pictures."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from longvita.data.errors import DataError
from longvita.data.mix.missing_files import describe_missing
from longvita.data.quarantine import QuarantinedSample, reasons_text
from longvita.data.report import spans
from longvita.data.report.examples import Example
from longvita.data.report.figures import Histogram, Imbalance, SourceFigures, imbalance_text
from longvita.data.report.mix import MixReport
from longvita.pages import as_data_url, write_page

SIDE = 160
"""Side of a thumbnail, pixels."""
MAX_CHARACTERS = 2000
"""Characters of one span of an example's text."""
MAX_ENTRIES = 10
"""Quarantined samples listed for each source and reason."""
_STYLE = (
    spans.STYLE
    + """
.bar { display: inline-block; height: .8em; background: #1f77b4; } td.bars { text-align: left; width: 26em; }
.sequence { display: flex; width: 640px; height: 14px; background: #eee; margin: 2px 0; }
.sequence span { background: #1f77b4; border-right: 1px solid #fff; box-sizing: border-box; }
article { border-top: 1px solid #ddd; margin-top: 1rem; }
"""
)


def check_page(page: Path, option: str, made: Path | None = None) -> None:
    """Raise DataError before the work if the page cannot be written; `option` is the option that gave its path.

    made: a folder that will be created.
    """
    if page.is_dir():
        raise DataError(f"{option} {page} is a folder; give the name of a file")
    if page.absolute().parent != (made and made.absolute()) and not page.absolute().parent.is_dir():
        raise DataError(f"the folder of {page} does not exist; make it, or write elsewhere ({option})")


def write_report(path: Path, name: str, mixes: Sequence[MixReport]) -> None:
    """Write the page of a config's mixes."""
    write_page(path, f"Data of {name}", [part for mix in mixes for part in _mix(mix)], _STYLE)


def _mix(mix: MixReport) -> list[str]:
    packing = mix.packing
    return [
        f"<h2>{html.escape(mix.title)}</h2>",
        _sources(mix.sources),
        f"<pre>Left out, {html.escape(describe_missing(mix.missing))}</pre>" if mix.missing else "",
        f"<h3>Packing</h3><p>{packing.sequences:,} sequences of {packing.sequence_length:,} tokens an epoch, "
        f"{packing.fill:.1%} filled. Sequences by their fill:</p>",
        _bars(packing.fills),
        f"<p>The first {len(packing.first)}, document by document:</p>",
        *(_sequence(lengths, packing.sequence_length) for lengths in packing.first),
        *(_imbalance(mix.imbalance) if mix.imbalance is not None else ()),
        *(part for source in mix.sources for part in _source(source, mix.examples[source.source], mix.title)),
        f"<h3>Quarantined ({html.escape(mix.title)})</h3>",
        *_quarantined(mix.quarantined),
    ]


def _imbalance(found: Imbalance) -> list[str]:
    text = html.escape(imbalance_text(found)).capitalize()
    return [
        f"<h3>Work of the replicas</h3><p>{text}. Steps by the excess of the busiest replica:</p>",
        _bars(found.classes),
    ]


def table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with a row of names; cells are text."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _sources(sources: Sequence[SourceFigures]) -> str:
    rows = []
    for one in sources:
        numbers = (one.samples, one.used, one.tokens, one.tiles, one.resampled)
        rows.append([one.source, *(f"{number:,}" for number in numbers), reasons_text(one.quarantined)])
    return table(("source", "samples", "used", "tokens", "tiles", "resampled", "quarantined"), rows)


def _bars(rows: Histogram) -> str:
    peak = max((count for _, count in rows), default=0) or 1
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='bars'><span class='bar' style='width: {24 * count / peak:.2f}em'>"
        f"</span></td><td>{count:,}</td></tr>"
        for name, count in rows
    )
    return f"<table>{cells}</table>"


def _sequence(lengths: np.ndarray, sequence_length: int) -> str:
    blocks = "".join(
        f"<span style='width: {length / sequence_length:.3%}' title='{length:,} tokens'></span>"
        for length in lengths.tolist()
    )
    return f"<div class='sequence'>{blocks}</div>"


def _source(source: SourceFigures, examples: Sequence[Example], title: str) -> list[str]:
    return [
        f"<h3>{html.escape(source.source)} ({html.escape(title)})</h3><p>Tokens of a sample:</p>",
        _bars(source.lengths),
        f"<p>{len(examples)} of its samples, chosen by the seed. Text with loss is <mark>marked</mark>.</p>",
        *(_example(example) for example in examples),
    ]


def _example(example: Example) -> str:
    request = example.request
    tokens = f"{request.length:,} tokens, {example.loss_tokens:,} with loss"
    head = f"{request.name} · {tokens} · {request.num_tiles:,} tiles"
    figures = "".join(
        f"<figure><img src='{as_data_url(picture, SIDE)}' alt=''><figcaption>{html.escape(name)}</figcaption></figure>"
        for name, picture in example.pictures
    )
    problem = f"<p>{html.escape(example.problem)}</p>" if example.problem else ""
    text = spans.as_html(example.spans, MAX_CHARACTERS)
    return f"<article><p><small>{html.escape(head)}</small></p>{figures}{problem}{text}</article>"


def _quarantined(entries: Sequence[QuarantinedSample]) -> list[str]:
    if not entries:
        return ["<p>None.</p>"]
    ordered = sorted(entries, key=lambda entry: (entry.source, entry.reason))
    groups = itertools.groupby(ordered, key=lambda entry: (entry.source, entry.reason))
    return [_group(source, str(reason), list(group)) for (source, reason), group in groups]


def _group(source: str, reason: str, entries: Sequence[QuarantinedSample]) -> str:
    shown = entries[:MAX_ENTRIES]
    more = f", the first {len(shown)} of them here" if len(shown) < len(entries) else ""
    items = "".join(f"<li>{html.escape(f'{one.path}:{one.line}: {one.detail}')}</li>" for one in shown)
    return f"<p>{html.escape(source)}: {reason} {len(entries):,}{more}</p><ul>{items}</ul>"
