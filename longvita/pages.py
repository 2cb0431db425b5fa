"""HTML reports: one file each, with its pictures inside, without scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
figcaption { font-size: 13px; color: #555; } img { margin: 1px; }
"""


def write_page(path: Path, title: str, parts: Sequence[str], style: str = "") -> None:
    """Write a page with a title and `parts`, which are HTML; `style` is CSS in addition to that of all pages."""
    name = html.escape(title)
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title><style>{_STYLE}{style}</style>"
    path.write_text(
        "\n".join([head, f"<h1>{name}</h1>", *parts, "</html>", ""]), encoding="utf-8", errors="backslashreplace"
    )


def as_data_url(picture: Image.Image, side: int | None = None) -> str:
    """A picture as a data URL: PNG, or with `side` a JPEG whose longer side is at most that many pixels."""
    stream = io.BytesIO()
    if side is None:
        picture.convert("RGB").save(stream, "PNG")
    else:
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        small.save(stream, "JPEG", quality=80)
    kind = "png" if side is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
