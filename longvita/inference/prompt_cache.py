"""KV caches of the last prompts and their answers, for later prompts with a common prefix."""

from __future__ import annotations

import dataclasses
from array import array

from longvita.attention.kv_cache import KVCache, allocated_bytes
from longvita.inference.prompt import Prompt, common_prefix


@dataclasses.dataclass
class CachedPrompt:
    """A prompt, followed by its answer so far, and the KV cache of both."""

    prompt: Prompt
    tokens: array[int]
    """The ids of `prompt`, which grow with the answer; the first `cache.length` of them are cached."""
    cache: KVCache


class PromptCache:
    """The last cached prompts. `start` adds one for a new prompt; `commit` or `rollback` must follow.

    All ranks of a replica hold the same prompts, each with its own rows of the KV caches.

    Args:
        size: most prompts that are cached at once, at least one.
        max_length: most tokens of a prompt and its answer.
        cp_size: context-parallel ranks that the tokens are split over.
        tokens_per_tile: rows of a tile.
    """

    def __init__(self, size: int, max_length: int, cp_size: int, tokens_per_tile: int):
        self.size, self.max_length, self.cp_size, self.tokens_per_tile = size, max_length, cp_size, tokens_per_tile
        self._cached: list[CachedPrompt] = []
        """The most recently used is last."""
        self._replaced: CachedPrompt | None = None
        """The prompt that the current one continues, for `rollback`."""

    @property
    def current(self) -> CachedPrompt | None:
        """The prompt started last."""
        return self._cached[-1] if self._cached else None

    def clear(self) -> None:
        """Evict all prompts and free their memory."""
        self._cached.clear()

    def start(self, prompt: Prompt) -> CachedPrompt:
        """Add a prompt, with the cached tokens of the longest common prefix.

        The last token is always computed, since its logits are needed.

        Where the prompt continues a cached one, it replaces that one and uses its KV cache. Where only a prefix is
        common, both stay, and share the pages of the prefix.
        """
        common = [self._common_tokens(cached, prompt) for cached in self._cached]
        self._replaced = None
        best = max(range(len(common)), key=lambda index: (common[index], index), default=None)
        if best is None or common[best] == 0:
            cache = KVCache(self.max_length, self.cp_size)
        elif common[best] == self._cached[best].cache.length:
            self._replaced = self._cached.pop(best)
            cache = self._replaced.cache
        else:
            self._cached.append(self._cached.pop(best))
            cache = self._cached[-1].cache.fork(common[best])
        tokens = array("i", prompt.input_ids)
        started = CachedPrompt(dataclasses.replace(prompt, input_ids=tokens), tokens, cache)
        self._cached.append(started)
        return started

    def room(self) -> list[int]:
        """Return the bytes on this rank, in addition to free memory, that the current prompt can use.

        Entry i: the pages it has, and those freed by evicting the i least recently used prompts.
        """
        caches = [cached.cache for cached in self._cached]
        own, every = allocated_bytes(caches[-1:]), allocated_bytes(caches)
        return [every - allocated_bytes(caches[evicted:]) + own for evicted in range(len(caches))]

    def commit(self, evicted: int) -> None:
        """Keep the started prompt. Evict the `evicted` least recently used prompts, and those beyond `size`."""
        del self._cached[: max(evicted, len(self._cached) - self.size)]

    def rollback(self) -> None:
        """Undo `start`; a prompt that was continued still counts as recently used."""
        if self._replaced is None:
            self._cached.pop()
        else:
            self._cached[-1] = self._replaced

    def _common_tokens(self, cached: CachedPrompt, prompt: Prompt) -> int:
        limit = min(len(prompt) - 1, cached.cache.length)
        return common_prefix(cached.prompt, prompt, self.tokens_per_tile, limit)
