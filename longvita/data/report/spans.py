"""The tokens of a document as spans of one kind: text, text with loss, and tiles."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from longvita.data.chat_template import IGNORED_LABEL, ChatTemplate, EncodedSample

TEXT, LOSS = -2, -1
"""Kinds of tokens; the kind of a tile is the rank that encodes it, from 0."""
STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace; }
.tokens mark { background: #cdeac0; } .tokens b { font-weight: normal; border-radius: 3px; padding: 0 .3em; }
.elided { color: #888; }
"""
RANK_COLOURS = ("#cfe2f3", "#f9cb9c", "#d9d2e9", "#fff2cc", "#c9e5e1", "#f4cccc", "#dde6b5", "#e6d3c0")
"""Colours of the ranks that encode tiles, repeated."""
TERMINAL_COLOURS = ("cyan", "yellow", "magenta", "blue", "red", "white")


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind."""

    kind: int
    """TEXT, LOSS, or the rank that encodes the tiles."""
    tokens: int
    text: str
    """Decoded text; empty for tiles."""
    tiles: range = range(0)
    """Numbers of the tiles in the document."""


def spans_of(encoded: EncodedSample, template: ChatTemplate, owners: Sequence[int] | np.ndarray = ()) -> list[Span]:
    """The spans of a document; `owners` [n]: the rank that encodes each tile, rank 0 for all when absent."""
    kinds = np.where(encoded.labels == IGNORED_LABEL, TEXT, LOSS)
    owners = np.asarray(owners, np.int64) if len(owners) else np.zeros(encoded.num_tiles, np.int64)
    # From the marker before a tile to the one after it.
    places = encoded.tile_starts[:, None] - 1 + np.arange(template.tokens_per_frame)
    kinds[places] = owners[:, None]
    bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    spans, tile = [], 0
    for start, end in itertools.pairwise(bounds):
        if kinds[start] >= 0:
            count = (end - start) // template.tokens_per_frame
            spans.append(Span(int(kinds[start]), end - start, "", range(tile, tile + count)))
            tile += count
        elif end > start:
            text = template.tokenizer.decode(encoded.input_ids[start:end].tolist())
            spans.append(Span(int(kinds[start]), end - start, text))
    return spans


def loss_tokens(encoded: EncodedSample) -> int:
    """Number of tokens of a document with loss."""
    return int(np.count_nonzero(encoded.labels != IGNORED_LABEL))


def as_html(spans: Sequence[Span], max_characters: int, name_of: Callable[[int], str] | None = None) -> str:
    """HTML of spans: text with loss marked, tiles as blocks in the colours of their ranks. The page needs STYLE.

    max_characters: of one span of text; the middle of a longer one is left out. name_of: name of a tile's rank, if it
    is to be shown.
    """
    parts = []
    for span in spans:
        if span.kind < 0:
            head, gap, tail = (html.escape(part) for part in _cut(span.text, max_characters))
            text = f"{head}<span class='elided'>{gap}</span>{tail}" if gap else head
            parts.append(f"<mark>{text}</mark>" if span.kind == LOSS else text)
        else:
            colour = RANK_COLOURS[span.kind % len(RANK_COLOURS)]
            parts.append(f"<b style='background: {colour}'>{html.escape(_block(span, name_of))}</b>")
    return f"<div class='tokens'>{''.join(parts)}</div>"


def as_text(spans: Sequence[Span], max_characters: int, name_of: Callable[[int], str] | None = None) -> Text:
    """Spans for the terminal, as `as_html`: text with loss is green and underlined."""
    text = Text()
    for span in spans:
        if span.kind < 0:
            style = "green underline" if span.kind == LOSS else ""
            head, gap, tail = _cut(span.text, max_characters)
            text.append(head, style)
            text.append(gap, "dim")
            text.append(tail, style)
        else:
            text.append(_block(span, name_of), f"reverse {TERMINAL_COLOURS[span.kind % len(TERMINAL_COLOURS)]}")
    return text


def _block(span: Span, name_of: Callable[[int], str] | None) -> str:
    numbers = f"tile {span.tiles[0]}" if len(span.tiles) == 1 else f"tiles {span.tiles[0]} to {span.tiles[-1]}"
    return f"[{numbers}: {span.tokens:,} tokens{f', {name_of(span.kind)}' if name_of else ''}]"


def _cut(text: str, max_characters: int) -> tuple[str, str, str]:
    """Text, or its two ends and between them the number of characters that are left out."""
    if len(text) <= max_characters:
        return text, "", ""
    half = max_characters // 2
    return text[:half], f" … {len(text) - 2 * half:,} characters … ", text[len(text) - half :]
