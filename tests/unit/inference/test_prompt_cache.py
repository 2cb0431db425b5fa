"""Which documents are kept, what a new prompt gets of them, and what goes when memory is short."""

from __future__ import annotations

import pytest
import torch

from longvita.attention import kv_cache
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.prompt_cache import Documents

PAGE_BYTES = 2 * 1 * 16 * 1 * 4


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "PAGE_ROWS", 16)


def prompt(*tokens: int) -> Prompt:
    return Prompt(list(tokens), [], TensorTiles(torch.zeros(0)), [])


def begin(documents: Documents, *tokens: int) -> int:
    """Begins a document and caches all of its prompt; how many of its tokens were cached already."""
    document = documents.begin(prompt(*tokens))
    documents.settle(0)
    cached = document.cache.length
    new = torch.zeros(len(tokens) - cached, 1, 1)
    document.cache.append(1, new, new)
    document.cache.advance(len(new))
    return cached


def test_a_prompt_that_goes_on_continues_the_document() -> None:
    documents = Documents(4, 1000, 1, 4)
    assert begin(documents, 1, 2, 3) == 0
    first = documents.current
    assert first is not None
    first.tokens.extend([4, 5])
    # The answer's last token is never cached.
    first.cache.append(1, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    first.cache.advance(1)
    assert begin(documents, 1, 2, 3, 4, 5, 6) == 4
    assert documents.current is not first and documents.current.cache is first.cache
    assert len(documents.room()) == 1


def test_a_prompt_that_branches_off_leaves_the_other_as_it_was() -> None:
    documents = Documents(4, 1000, 1, 4)
    media = list(range(40))
    begin(documents, *media, 101, 102)
    assert begin(documents, *media, 201, 202, 203) == 40
    assert begin(documents, *media, 101, 102, 103) == 42, "the first document goes on"
    assert begin(documents, *media, 201, 202, 203, 204) == 43
    # Each has three pages, two of which are one.
    assert documents.room() == [3 * PAGE_BYTES, 4 * PAGE_BYTES]
    assert begin(documents, 7, 8) == 0
    assert begin(documents, *media, 201, 202, 203) == 42, "at least the last token is left to be run"


def test_the_least_used_goes_first() -> None:
    documents = Documents(2, 1000, 1, 4)
    begin(documents, 1, 1, 1)
    begin(documents, 2, 2, 2)
    begin(documents, 1, 1, 1, 1)
    begin(documents, 3, 3, 3)
    assert begin(documents, 2, 2, 2, 2) == 0
    assert begin(documents, 3, 3, 3, 3) == 3
    assert begin(documents, 1, 1, 1, 1, 1) == 0
    documents.clear()
    assert documents.current is None and documents.room() == []


def test_room_counts_what_dropping_frees() -> None:
    documents = Documents(4, 1000, 1, 4)
    for number in (1, 2, 3):
        begin(documents, *[number] * 20)
    assert documents.room() == [2 * PAGE_BYTES, 4 * PAGE_BYTES, 6 * PAGE_BYTES]
    documents.settle(2)
    assert documents.room() == [2 * PAGE_BYTES]
    assert begin(documents, *[1] * 21) == 0


def test_what_is_refused_costs_nobody_a_place() -> None:
    documents = Documents(2, 1000, 1, 4)
    begin(documents, 1, 1, 1)
    begin(documents, 2, 2, 2)
    for tokens in ([3, 3, 3], [2, 2, 9], [2, 2, 2, 2]):
        documents.begin(prompt(*tokens))
        documents.give_up()
    assert begin(documents, 2, 2, 2, 5) == 3
    assert begin(documents, 1, 1, 1, 5) == 3
    assert len(documents.room()) == 2
