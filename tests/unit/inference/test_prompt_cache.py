"""Which prompts stay cached, what a new prompt reuses of them, and what is evicted when memory is short."""

from __future__ import annotations

import pytest
import torch

from longvita.attention import kv_cache
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.prompt_cache import PromptCache

PAGE_BYTES = 2 * 1 * 16 * 1 * 4


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "PAGE_ROWS", 16)


def prompt(*tokens: int) -> Prompt:
    return Prompt(list(tokens), [], TensorTiles(torch.zeros(0)), [])


def cached_tokens(prompts: PromptCache, *tokens: int) -> int:
    """Start a prompt and cache all of it; return how many of its tokens were cached already."""
    started = prompts.start(prompt(*tokens))
    prompts.commit(0)
    cached = started.cache.length
    new = torch.zeros(len(tokens) - cached, 1, 1)
    started.cache.append(1, new, new)
    started.cache.advance(len(new))
    return cached


def test_a_longer_prompt_continues_the_cached_one() -> None:
    prompts = PromptCache(4, 1000, 1, 4)
    assert cached_tokens(prompts, 1, 2, 3) == 0
    first = prompts.current
    assert first is not None
    first.tokens.extend([4, 5])
    # The answer's last token is never cached.
    first.cache.append(1, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    first.cache.advance(1)
    assert cached_tokens(prompts, 1, 2, 3, 4, 5, 6) == 4
    assert prompts.current is not first and prompts.current.cache is first.cache
    assert len(prompts.room()) == 1


def test_a_prompt_that_branches_off_leaves_the_other_as_it_was() -> None:
    prompts = PromptCache(4, 1000, 1, 4)
    media = list(range(40))
    cached_tokens(prompts, *media, 101, 102)
    assert cached_tokens(prompts, *media, 201, 202, 203) == 40
    assert cached_tokens(prompts, *media, 101, 102, 103) == 42, "the first prompt is continued"
    assert cached_tokens(prompts, *media, 201, 202, 203, 204) == 43
    # Each has three pages, two of which are one.
    assert prompts.room() == [3 * PAGE_BYTES, 4 * PAGE_BYTES]
    assert cached_tokens(prompts, 7, 8) == 0
    assert cached_tokens(prompts, *media, 201, 202, 203) == 42, "at least the last token is computed"


def test_the_least_recently_used_is_evicted_first() -> None:
    prompts = PromptCache(2, 1000, 1, 4)
    cached_tokens(prompts, 1, 1, 1)
    cached_tokens(prompts, 2, 2, 2)
    cached_tokens(prompts, 1, 1, 1, 1)
    cached_tokens(prompts, 3, 3, 3)
    assert cached_tokens(prompts, 2, 2, 2, 2) == 0
    assert cached_tokens(prompts, 3, 3, 3, 3) == 3
    assert cached_tokens(prompts, 1, 1, 1, 1, 1) == 0
    prompts.clear()
    assert prompts.current is None and prompts.room() == []


def test_room_counts_what_eviction_frees() -> None:
    prompts = PromptCache(4, 1000, 1, 4)
    for number in (1, 2, 3):
        cached_tokens(prompts, *[number] * 20)
    assert prompts.room() == [2 * PAGE_BYTES, 4 * PAGE_BYTES, 6 * PAGE_BYTES]
    prompts.commit(2)
    assert prompts.room() == [2 * PAGE_BYTES]
    assert cached_tokens(prompts, *[1] * 21) == 0


def test_a_rollback_evicts_nothing() -> None:
    prompts = PromptCache(2, 1000, 1, 4)
    cached_tokens(prompts, 1, 1, 1)
    cached_tokens(prompts, 2, 2, 2)
    for tokens in ([3, 3, 3], [2, 2, 9], [2, 2, 2, 2]):
        prompts.start(prompt(*tokens))
        prompts.rollback()
    assert cached_tokens(prompts, 2, 2, 2, 5) == 3
    assert cached_tokens(prompts, 1, 1, 1, 5) == 3
    assert len(prompts.room()) == 2
