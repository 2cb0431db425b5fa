"""The KV cache: its contents, its growth by pages, and the pages that two caches share."""

from __future__ import annotations

import pytest
import torch

from longvita.attention import kv_cache
from longvita.attention.kv_cache import KVCache, allocated_bytes

PAGE = 16
PAGE_BYTES = 2 * 2 * PAGE * 4 * 4
"""Keys and values, two groups, four numbers of four bytes."""


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "PAGE_ROWS", PAGE)


def rows(count: int, offset: int = 0) -> torch.Tensor:
    """[count, 2, 4], each row filled with its number."""
    return (torch.arange(count) + offset).float()[:, None, None].expand(count, 2, 4).contiguous()


def fill(cache: KVCache, count: int, layers: tuple[int, ...] = (1, 2), offset: int | None = None) -> None:
    first = cache.length if offset is None else offset
    for layer in layers:
        cache.append(layer, rows(count, first), -rows(count, first))
    cache.advance(count)


def held(cache: KVCache, layer: int = 1) -> list[int]:
    """The numbers of the cached rows; the values must be theirs too."""
    blocks = cache.past(layer)
    for keys, values in blocks:
        assert keys.shape[1:] == (2, 4) and torch.equal(keys, -values)
    return [int(number) for keys, _ in blocks for number in keys[:, 1, 3]]


def test_appended_rows_are_returned_in_order() -> None:
    cache = KVCache(10_000)
    for count in (3, 1, 70, 12, 10, 1):
        before = list(range(cache.length))
        for layer in (1, 2):
            cache.append(layer, rows(count, cache.length), -rows(count, cache.length))
            assert held(cache, layer) == before, "a chunk counts once the pass is over"
        cache.advance(count)
        assert held(cache) == held(cache, 2) == list(range(cache.length))
    assert cache.length == 97
    assert [len(keys) for keys, _ in cache.past(1)] == [PAGE] * 6 + [1]
    assert cache.past(7) == []


def test_pages_are_allocated_with_their_first_row() -> None:
    cache = KVCache(1_310_720)
    assert allocated_bytes([cache]) == 0
    for count in range(1, 4 * PAGE + 2):
        fill(cache, 1, (1,))
        assert allocated_bytes([cache]) == -(-count // PAGE) * PAGE_BYTES


def test_rows_of_padding_are_overwritten() -> None:
    cache = KVCache(100)
    for layer in (1, 2):
        cache.append(layer, rows(20), -rows(20))
    cache.advance(15)
    fill(cache, 4)
    assert held(cache) == list(range(19))


def test_an_interrupted_pass_leaves_no_trace() -> None:
    cache = KVCache(100)
    fill(cache, 5)
    cache.append(1, rows(30, 50), -rows(30, 50))
    fill(cache, 2)
    assert held(cache) == held(cache, 2) == list(range(7))


def test_a_fork_shares_full_pages_and_then_grows_by_itself() -> None:
    cache = KVCache(1_000)
    fill(cache, 3 * PAGE + 5)
    fork = cache.fork(2 * PAGE + 3)
    assert held(fork) == held(fork, 2) == list(range(2 * PAGE + 3))
    # Of each layer two pages are one, and the third is a copy.
    assert allocated_bytes([cache, fork]) == 2 * (4 + 1) * PAGE_BYTES
    fill(fork, PAGE, offset=500)
    fill(cache, PAGE, offset=900)
    assert held(fork) == [*range(2 * PAGE + 3), *range(500, 500 + PAGE)]
    assert held(cache) == [*range(3 * PAGE + 5), *range(900, 900 + PAGE)]
    whole = cache.fork(2 * PAGE)
    assert allocated_bytes([whole]) == allocated_bytes([cache.fork(2 * PAGE), whole]) == 2 * 2 * PAGE_BYTES
    assert held(cache.fork(0)) == []
    with pytest.raises(ValueError, match="has no first"):
        fork.fork(fork.length + 1)


def test_a_fork_of_one_ranks_rows() -> None:
    cache = KVCache(1_000, cp_size=2)
    for start in range(0, 80, 2):
        cache.append(1, rows(1, start), -rows(1, start))
        cache.advance(2, [start])
    assert (cache.length, cache.rows, list(cache.positions())[:3]) == (80, 40, [0, 2, 4])
    fork = cache.fork(41)
    assert (fork.length, fork.rows) == (41, 21)
    assert held(fork) == list(fork.positions()) == list(range(0, 42, 2))


def test_limits() -> None:
    cache = KVCache(6)
    fill(cache, 4)
    for layer in (1, 2):
        cache.append(layer, rows(3), rows(3))
    with pytest.raises(ValueError, match="7 tokens do not fit"):
        cache.advance(3)
    cache.append(2, rows(0), rows(0))
    with pytest.raises(ValueError, match="cannot advance"):
        cache.advance(-1)
    with pytest.raises(ValueError, match=r"layers \[2\] hold fewer"):
        cache.advance(1)
