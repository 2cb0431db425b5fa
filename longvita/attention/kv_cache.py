"""Keys and values of the tokens before the next one, in pages, so that what one token needs is computed once.

A pass over a chunk of t tokens calls `append` once in each layer and `advance` once at its end:

    past = cache.past(layer)           # blocks of keys and values of the tokens before the chunk
    cache.append(layer, k, v)          # of the chunk, in each layer's core attention
    cache.advance(t)                   # the chunk is now part of the past

Until `advance` nothing of the chunk counts: an interrupted pass leaves no trace, and `advance(n)` with n < t drops the
rows at the end that only padded the chunk.

With context parallelism each rank keeps the keys and values that it computed: `rows` of them here, of `length` tokens
on all ranks together. Caches of documents that begin alike share the pages of their beginning (`fork`): a page that is
full is never written again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

PAGE_ROWS = 2048
"""Rows of a page: few enough that little of the last one is empty, so many that attention over one is no small call."""

Blocks = list[tuple[Tensor, Tensor]]
"""Keys and values [n, groups, d] of consecutive rows."""


class AttentionObserver(Protocol):
    """Sees the attention of single tokens to what is cached."""

    def observe(self, q: Tensor, past: Blocks, lse: Tensor, scale: float) -> None:
        """One layer's attention of a new token: q [t, heads, d], cached keys and values, logsumexps [t, heads]."""


class KVCache:
    """Cached keys and values of the layers of this rank, for one document.

    A page is allocated when its first row comes, so a limit of a million tokens costs no memory before they do, and
    nothing is copied as the cache grows. The rows of a group lie together in a page, for a new token reads each group's
    from first to last.

    Args:
        max_length: most tokens that may be cached; `advance` raises ValueError beyond it.
        shares: context-parallel ranks that the tokens are spread over.
    """

    def __init__(self, max_length: int, shares: int = 1):
        self.max_length, self.shares = max_length, shares
        self.length = self.rows = 0
        self.watch: AttentionObserver | None = None
        """Told of the attention of single tokens to what is cached, while there is one."""
        self._positions = array("q")
        self._pages: dict[int, list[Tensor]] = {}
        """Of each layer, [2, groups, PAGE_ROWS, d]."""
        self._ends: dict[int, int] = {}
        """Rows of each layer that were written."""

    def past(self, layer_number: int) -> Blocks:
        """The cached keys and values of a layer, page by page."""
        pages = self._pages.get(layer_number, [])
        counts = (min(self.rows - start, PAGE_ROWS) for start in range(0, self.rows, PAGE_ROWS))
        views = (page[:, :, :count].transpose(1, 2) for page, count in zip(pages, counts, strict=False))
        return [(view[0], view[1]) for view in views]

    def append(self, layer_number: int, key: Tensor, value: Tensor) -> None:
        """Writes a chunk's keys and values [t, groups, d] behind the `rows` cached ones of a layer."""
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
        """Counts a chunk of `tokens` tokens as cached: the first rows that every layer appended.

        positions: those of this rank's tokens in the sequence, ascending, where other ranks have some; their number is
        the number of rows then.
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
        """Where the rows of this rank stand in the sequence."""
        return range(self.rows) if self.shares == 1 else self._positions

    def fork(self, length: int) -> KVCache:
        """A cache of the first `length` tokens of this one. Their full pages are shared, the last one is copied."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a KV cache of {self.length} tokens has no first {length}")
        other = KVCache(self.max_length, self.shares)
        other.length = length
        other.rows = length if self.shares == 1 else bisect_left(self._positions, length)
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
        """All pages; other caches may hold some of them too."""
        return (page for pages in self._pages.values() for page in pages)


def allocated_bytes(caches: Iterable[KVCache]) -> int:
    """Bytes of the pages of some caches on this rank, a shared page counted once."""
    return sum({page.data_ptr(): page.nbytes for cache in caches for page in cache.pages()}.values())
