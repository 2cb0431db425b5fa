"""A page that shows which frames and pictures an answer attended to."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from longvita.inference.prompt_encoder import MediaTiles, PromptError
from longvita.pages import as_data_url, write_page

MOST_SHOWN = 24
"""Tiles shown as pictures, those with the largest shares."""
SIDE = 200
_WIDTH, _HEIGHT = 920, 120
_BARS = 460
"""Most bars of the chart; of more tiles, neighbours share a bar, as high as the highest of them."""


def check_page(path: str) -> None:
    """Raise PromptError if the page cannot be written."""
    page = Path(path).expanduser()
    if page.suffix != ".html" or page.is_dir():
        raise PromptError(f"--show-frames {path} is not the name of an .html file")
    if not (page.parent.is_dir() and os.access(page if page.exists() else page.parent, os.W_OK)):
        raise PromptError(f"--show-frames {path}: there is no folder {page.parent} that it can be written to")


def write_attended(path: Path, question: str, answer: str, shares: Tensor, tiles: MediaTiles) -> None:
    """Writes the page; shares [n]: how much of the attention each tile of the prompt got."""
    labels = tiles.labels()
    best = sorted(sorted(range(len(shares)), key=lambda tile: -float(shares[tile]))[:MOST_SHOWN])
    pictures = tiles.pictures(best) if best else []
    order = sorted(range(len(best)), key=lambda place: -float(shares[best[place]]))
    figures = (
        f"<figure><img src='{as_data_url(pictures[place], SIDE)}' alt=''><figcaption>{html.escape(labels[best[place]])}"
        f"<br>{float(shares[best[place]]):.2%} of the attention</figcaption></figure>"
        for place in order
    )
    parts = [
        f"<p>{html.escape(question)}</p><p><strong>{html.escape(answer)}</strong></p>",
        f"<p>Attention of the answer's tokens, mean over layers and heads: {float(shares.sum()):.1%} to "
        f"{len(shares)} frames and tiles of pictures, the rest to text. Left to right as the model was shown them:</p>",
        _chart(shares.tolist()),
        f"<h2>The {len(best)} with most</h2>",
        *figures,
    ]
    write_page(path, "What the answer attended to", parts)


def _chart(shares: Sequence[float]) -> str:
    """Bars of the shares in the order of the prompt, as SVG."""
    group = max(1, -(-len(shares) // _BARS))
    bars = [max(shares[start : start + group]) for start in range(0, len(shares), group)]
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
