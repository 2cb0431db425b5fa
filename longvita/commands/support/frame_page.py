"""A page that shows which frames and pictures an answer attended to."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longvita.inference.errors import PromptError
from longvita.pages import as_data_url, write_page

if TYPE_CHECKING:
    from torch import Tensor

    from longvita.inference.prompt_encoder import MediaTiles

MAX_SHOWN = 24
"""Tiles shown as pictures, those with the most attention."""
SIDE = 200
_WIDTH, _HEIGHT = 920, 120
_MAX_BARS = 460
"""Of the chart; with more tiles, neighbours are one bar with the highest of their values."""


def check_page(path: str) -> None:
    """Raise PromptError if the page cannot be written."""
    page = Path(path).expanduser()
    if page.suffix != ".html" or page.is_dir():
        raise PromptError(f"--show-frames {path} is not the name of an .html file")
    if not (page.parent.is_dir() and os.access(page if page.exists() else page.parent, os.W_OK)):
        raise PromptError(f"--show-frames {path}: there is no folder {page.parent} that it can be written to")


def write_attended(path: Path, question: str, answer: str, attention: Tensor, tiles: MediaTiles) -> None:
    """Write the page; attention [n]: fraction of the attention that each tile of the prompt got."""
    labels = tiles.labels()
    best = sorted(sorted(range(len(attention)), key=lambda tile: -float(attention[tile]))[:MAX_SHOWN])
    pictures = tiles.pictures(best) if best else []
    order = sorted(range(len(best)), key=lambda place: -float(attention[best[place]]))
    figures = (
        f"<figure><img src='{as_data_url(pictures[place], SIDE)}' alt=''><figcaption>{html.escape(labels[best[place]])}"
        f"<br>{float(attention[best[place]]):.2%} of the attention</figcaption></figure>"
        for place in order
    )
    parts = [
        f"<p>{html.escape(question)}</p><p><strong>{html.escape(answer)}</strong></p>",
        f"<p>Attention of the answer's tokens, mean over layers and heads: {float(attention.sum()):.1%} to "
        f"{len(attention)} frames and tiles of pictures, the rest to text. Left to right in the prompt's order:</p>",
        _chart(attention.tolist()),
        f"<h2>The {len(best)} with most</h2>",
        *figures,
    ]
    write_page(path, "What the answer attended to", parts)


def _chart(attention: Sequence[float]) -> str:
    """Draw the attention as bars in the order of the prompt, as SVG."""
    group = max(1, -(-len(attention) // _MAX_BARS))
    bars = [max(attention[start : start + group]) for start in range(0, len(attention), group)]
    highest = max(bars, default=0.0) or 1.0
    width = _WIDTH / max(len(bars), 1)
    drawn = "".join(
        f"<rect x='{place * width:.1f}' y='{_HEIGHT * (1 - bar / highest):.1f}' width='{max(width - 0.5, 0.5):.1f}' "
        f"height='{_HEIGHT * bar / highest:.1f}' fill='#1f77b4'/>"
        for place, bar in enumerate(bars)
    )
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='attention by frame'>{drawn}</svg>"
        f"<figcaption>highest bar: {highest:.2%} of the attention</figcaption></figure>"
    )
