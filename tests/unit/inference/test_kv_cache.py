"""The KV cache: what append returns, how it grows, what it forgets."""

from __future__ import annotations

import pytest
import torch

from longvita.inference.kv_cache import CachedSeqParams, KVCache


def rows(count: int, offset: int = 0) -> torch.Tensor:
    """[count, 2, 4], each row filled with its number."""
    return (torch.arange(count) + offset).float()[:, None, None].expand(count, 2, 4).contiguous()


def fill(cache: KVCache, count: int, layers: tuple[int, ...] = (1, 2)) -> None:
    for layer in layers:
        cache.append(layer, rows(count, cache.length), -rows(count, cache.length))
    cache.advance(count)


def test_append_returns_everything_so_far() -> None:
    cache = KVCache(10_000)
    for count in (3, 1, 700, 1):
        start = cache.length
        for layer in (1, 2):
            keys, values = cache.append(layer, rows(count, start), -rows(count, start))
            assert torch.equal(keys, rows(start + count))
            assert torch.equal(values, -rows(start + count))
        cache.advance(count)
    assert cache.length == 705


def test_a_large_limit_allocates_nothing_ahead() -> None:
    cache = KVCache(1_310_720)
    assert cache.allocated_bytes() == 0
    fill(cache, 10, (1,))
    assert cache.allocated_bytes() == 2 * 256 * 2 * 4 * 4


def test_growth_copies_rarely() -> None:
    cache = KVCache(1_310_720)
    sizes = set()
    for _ in range(400):
        fill(cache, 10, (1,))
        sizes.add(cache.allocated_bytes())
    assert len(sizes) <= 14
    assert cache.allocated_bytes() <= 2 * 2 * 4 * 4 * (4000 * 1.25 + 256)


def test_reserved_length_is_allocated_at_once() -> None:
    cache = KVCache(5_000)
    cache.reserve(4_000)
    fill(cache, 10, (1,))
    before = cache.allocated_bytes()
    for _ in range(399):
        fill(cache, 10, (1,))
    assert cache.allocated_bytes() == before


def test_a_chunk_that_was_not_advanced_leaves_no_trace() -> None:
    cache = KVCache(100)
    fill(cache, 4)
    cache.append(1, rows(5, 90), rows(5, 90))
    keys, _ = cache.append(1, rows(2, 4), rows(2, 4))
    assert torch.equal(keys, rows(6))


def test_advance_drops_the_rows_that_padded_the_chunk() -> None:
    cache = KVCache(100)
    for layer in (1, 2):
        cache.append(layer, rows(4), rows(4))
    cache.advance(3)
    keys, _ = cache.append(1, rows(2, 3), rows(2, 3))
    assert torch.equal(keys, rows(5))


def test_truncate_keeps_the_beginning_and_reset_frees_all() -> None:
    cache = KVCache(100)
    fill(cache, 8)
    cache.truncate(5)
    keys, _ = cache.append(2, rows(1, 5), rows(1, 5))
    assert torch.equal(keys, rows(6))
    cache.reset()
    assert (cache.length, cache.allocated_bytes()) == (0, 0)


def test_limits_are_kept() -> None:
    cache = KVCache(6)
    fill(cache, 6)
    cache.append(1, rows(1), rows(1))
    with pytest.raises(ValueError, match="7 tokens do not fit a KV cache of at most 6"):
        cache.advance(1)
    with pytest.raises(ValueError, match="truncate a KV cache of 6 tokens to 7"):
        cache.truncate(7)


def test_advancing_past_what_layers_hold_is_refused() -> None:
    cache = KVCache(1_000)
    fill(cache, 2)
    with pytest.raises(ValueError, match="cannot advance the KV cache by 500"):
        cache.advance(500)


def test_sequence_parameters_carry_the_cache() -> None:
    cache = KVCache(10)
    assert CachedSeqParams(qkv_format="thd", kv_cache=cache).kv_cache is cache
    assert CachedSeqParams(qkv_format="thd").kv_cache is None
