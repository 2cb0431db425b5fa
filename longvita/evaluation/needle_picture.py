"""needle.png: the fraction of needles found, by depth and length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path


def draw_grid(path: Path, lengths: Sequence[int], depths: Sequence[float], found: Sequence[Sequence[float]]) -> None:
    """Draw a coloured grid; `found` [depths][lengths] is from 0 to 1, NaN where nothing was answered."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 0.7 * len(lengths), 1.8 + 0.5 * len(depths)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(found, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("frames")
    axes.set_ylabel("depth of the needle")
    for row, values in enumerate(found):
        for column, value in enumerate(values):
            if not math.isnan(value):
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8)
    figure.colorbar(picture, label="found")
    figure.savefig(path, dpi=120)
