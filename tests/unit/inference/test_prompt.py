"""Chunks that never cut a tile, and how much of a prompt a conversation's cache already holds."""

from __future__ import annotations

import random

import pytest
import torch

from longvita.inference.prompt import Prompt, TensorTiles, common_prefix, plan_chunks

TILES = TensorTiles(torch.zeros(0, 3, 4, 4))


def prompt(ids: list[int], tiles: dict[int, str] | None = None) -> Prompt:
    tiles = tiles or {}
    return Prompt(ids, list(tiles), TILES, list(tiles.values()))


def test_chunks_have_the_wanted_size() -> None:
    assert plan_chunks(0, 10, [], 4, 4) == [(0, 4), (4, 8), (8, 10)]
    assert plan_chunks(7, 10, [], 4, 4) == [(7, 10)]
    assert plan_chunks(10, 10, [], 4, 4) == []


def test_a_chunk_ends_before_a_tile_that_it_would_cut() -> None:
    assert plan_chunks(0, 12, [2, 6], 4, 5) == [(0, 2), (2, 6), (6, 11), (11, 12)]


def test_a_tile_larger_than_a_chunk_gets_one_of_its_own() -> None:
    assert plan_chunks(0, 12, [2], 8, 3) == [(0, 2), (2, 10), (10, 12)]


def test_any_chunk_size_covers_all_positions_and_cuts_no_tile() -> None:
    generator = random.Random(1)
    for _ in range(300):
        per_tile, end = generator.randint(1, 6), 0
        starts = []
        for _ in range(generator.randint(0, 6)):
            starts.append(end + generator.randint(0, 3))
            end = starts[-1] + per_tile
        end += generator.randint(1, 4)
        chunks = plan_chunks(0, end, starts, per_tile, generator.randint(1, 12))
        assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
        assert chunks[-1][1] == end
        for start in starts:
            assert any(low <= start and start + per_tile <= high for low, high in chunks)


def test_chunk_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="prefill_chunk_size is 0"):
        plan_chunks(0, 4, [], 1, 0)


def test_prefix_of_text() -> None:
    assert common_prefix(prompt([1, 2, 3]), prompt([1, 2, 4, 5]), 2, limit=99) == 2
    assert common_prefix(prompt([1, 2, 3]), prompt([1, 2, 3, 4]), 2, limit=99) == 3
    assert common_prefix(prompt([1, 2, 3, 4]), prompt([1, 2, 3, 4]), 2, limit=3) == 3
    assert common_prefix(prompt([]), prompt([1]), 2, limit=0) == 0


def test_another_picture_ends_the_prefix_although_its_tokens_are_equal() -> None:
    ids = [5, 9, 9, 6, 5, 9, 9, 6, 7]
    old, new = prompt(ids, {1: "cat", 5: "dog"}), prompt(ids, {1: "cat", 5: "bird"})
    assert common_prefix(old, new, 2, limit=99) == 5
    assert common_prefix(old, prompt(ids, {1: "cat", 5: "dog"}), 2, limit=99) == 9
    assert common_prefix(prompt(ids, {1: "cat"}), old, 2, limit=99) == 5
    assert common_prefix(old, prompt(ids, {1: "cat"}), 2, limit=99) == 5


def test_a_prefix_never_ends_inside_a_tile() -> None:
    ids = [5, 9, 9, 6]
    assert common_prefix(prompt(ids[:2], {1: "cat"}), prompt(ids, {1: "cat"}), 2, limit=99) == 1
    assert common_prefix(prompt(ids, {1: "cat"}), prompt(ids, {1: "cat"}), 2, limit=2) == 1


def test_tensor_tiles_load_by_index() -> None:
    tiles = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    assert torch.equal(TensorTiles(tiles).load([0, 2])[:, 0, 0, 0], torch.tensor([0.0, 2.0]))
