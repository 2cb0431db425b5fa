"""KV cache: keys and values of the tokens so far, in pages.

A pass over a chunk of t tokens calls `append` once in each layer and `advance` once at its end:

    past = cache.past(layer)           # blocks of keys and values of the tokens before the chunk
    cache.append(layer, k, v)          # keys and values of the chunk, in each layer's core attention
    cache.advance(t)                   # the chunk is now part of the past

Nothing of the chunk counts before `advance`: an interrupted pass leaves no trace, and `advance(n)` with n < t drops the
last rows, which only padded the chunk.

With context parallelism (CP) each rank keeps the keys and values that it computed: this rank holds `rows` of the
`length` tokens that all ranks hold together. Caches of prompts with a common prefix share the pages of that prefix
(`fork`): a full page is never written again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

PAGE_ROWS = 2048
"""Rows of a page: small enough that little of the last page is empty, large enough for one efficient kernel call."""

Blocks = list[tuple[Tensor, Tensor]]
"""Keys and values [n, groups, d] of consecutive rows."""


class AttentionObserver(Protocol):
    """Receives the attention of single tokens to the cached tokens."""

    def observe(self, q: Tensor, past: Blocks, lse: Tensor, scale: float) -> None:
        """Receive one layer's attention of a new token: q [t, heads, d], cached keys and values, lse [t, heads]."""


class KVCache:
    """Cached keys and values of one sequence, for the layers of this rank.

    A page is allocated with its first row: a limit of a million tokens costs no memory in advance, and nothing is
    copied as the cache grows. Inside a page the rows of one KV group are contiguous, because a new token reads each
    group's rows in order.

    Args:
        max_length: most tokens that may be cached; `advance` raises ValueError beyond it.
        cp_size: context-parallel ranks that the tokens are split over.
    """

    def __init__(self, max_length: int, cp_size: int = 1):
        self.max_length, self.cp_size = max_length, cp_size
        self.length = self.rows = 0
        self.observer: AttentionObserver | None = None
        """Receives the attention of single tokens to the cached ones, where set."""
        self._positions = array("q")
        self._pages: dict[int, list[Tensor]] = {}
        """By layer; each page [2, groups, PAGE_ROWS, d]."""
        self._ends: dict[int, int] = {}
        """Rows written, by layer."""

    def past(self, layer_number: int) -> Blocks:
        """Return the cached keys and values of a layer, page by page."""
        pages = self._pages.get(layer_number, [])
        counts = (min(self.rows - start, PAGE_ROWS) for start in range(0, self.rows, PAGE_ROWS))
        views = (page[:, :, :count].transpose(1, 2) for page, count in zip(pages, counts, strict=False))
        return [(view[0], view[1]) for view in views]

    def append(self, layer_number: int, key: Tensor, value: Tensor) -> None:
        """Write a chunk's keys and values [t, groups, d] behind the `rows` cached rows of a layer."""
        pages = self._pages.setdefault(layer_number, [])
        self._ends[layer_number] = self.rows + len(key)
        done = 0
        while done < len(key):
            page, first = divmod(self.rows + done, PAGE_ROWS)
            if page == len(pages):
                pages.append(key.new_empty((2, key.shape[1], PAGE_ROWS, key.shape[2])))
            count = min(PAGE_ROWS - first, len(key) - done)
            for store, new in zip(pages[page], (key, value), strict=True):
                store[:, first : first + count] = new[done : done + count].transpose(0, 1)
            done += count

    def advance(self, tokens: int, positions: Sequence[int] | None = None) -> None:
        """Count a chunk of `tokens` tokens as cached: the first rows that every layer appended.

        positions: with context parallelism, the positions in the sequence of this rank's rows, ascending.
        Raises ValueError where a layer appended fewer rows, or beyond `max_length`.
        """
        rows = tokens if positions is None else len(positions)
        short = [layer for layer, end in self._ends.items() if end < self.rows + rows]
        if tokens < 0 or short:
            raise ValueError(f"cannot advance the KV cache by {tokens} tokens: layers {short} hold fewer")
        if self.length + tokens > self.max_length:
            raise ValueError(
                f"{self.length + tokens} tokens do not fit a KV cache of at most {self.max_length} (max_seq_len)"
            )
        self.length += tokens
        self.rows += rows
        self._positions.extend(positions or ())

    def positions(self) -> Sequence[int]:
        """Return the position in the sequence of each row of this rank."""
        return range(self.rows) if self.cp_size == 1 else self._positions

    def fork(self, length: int) -> KVCache:
        """Return a cache of the first `length` tokens. It shares their full pages and copies the last, partial one."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a KV cache of {self.length} tokens has no first {length}")
        other = KVCache(self.max_length, self.cp_size)
        other.length = length
        other.rows = length if self.cp_size == 1 else bisect_left(self._positions, length)
        other._positions = self._positions[: other.rows]
        full, rest = divmod(other.rows, PAGE_ROWS)
        for layer, pages in self._pages.items():
            other._ends[layer] = other.rows
            other._pages[layer] = pages[:full]
            if rest:
                last = pages[full].new_empty(pages[full].shape)
                last[:, :, :rest] = pages[full][:, :, :rest]
                other._pages[layer].append(last)
        return other

    def pages(self) -> Iterable[Tensor]:
        """Return all pages; other caches may share some of them."""
        return (page for pages in self._pages.values() for page in pages)


def allocated_bytes(caches: Iterable[KVCache]) -> int:
    """Return the bytes of the pages of some caches on this rank, counting a shared page once."""
    return sum({page.data_ptr(): page.nbytes for cache in caches for page in cache.pages()}.values())


def cached_rows(rows: int, first: int, cp_size: int, cp_rank: int) -> range:
    """Rows that a rank caches of `rows` new tokens that every rank has, the first of them at position `first`.

    The token at position p is cached by rank p % CP, so that generated tokens fill all ranks evenly.
    """
    return range((cp_rank - first) % cp_size, rows, cp_size)
