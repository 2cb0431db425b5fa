"""The documents whose keys and values are kept: prompts with their answers, for later prompts that begin alike."""

from __future__ import annotations

import dataclasses
from array import array

from longvita.attention.kv_cache import KVCache, allocated_bytes
from longvita.inference.prompt import Prompt, common_prefix


@dataclasses.dataclass
class Document:
    """A prompt, with the answer behind it as far as it has come, and what is cached of it."""

    prompt: Prompt
    cache: KVCache

    @property
    def tokens(self) -> array[int]:
        """Prompt and answer; what of them is cached is known by the cache's length."""
        tokens = self.prompt.input_ids
        if not isinstance(tokens, array):
            raise TypeError(f"a document's tokens are an array that grows, not {type(tokens).__name__}")
        return tokens


class Documents:
    """The last documents, of which one prompt at a time is continued.

    All ranks of a replica hold the same documents, each with its own rows of their keys and values.

    Args:
        most: documents that are kept at once, at least one.
        max_length: most tokens of a document.
        shares: context-parallel ranks that its tokens are spread over.
        tokens_per_tile: rows of a tile.
    """

    def __init__(self, most: int, max_length: int, shares: int, tokens_per_tile: int):
        self.most, self.max_length, self.shares, self.tokens_per_tile = most, max_length, shares, tokens_per_tile
        self._kept: list[Document] = []
        """The last one used is the last."""
        self._continued: Document | None = None
        """The one that the current document takes the place of."""

    @property
    def current(self) -> Document | None:
        """The document that was begun last."""
        return self._kept[-1] if self._kept else None

    def clear(self) -> None:
        """Forgets all of them and frees their memory."""
        self._kept.clear()

    def begin(self, prompt: Prompt) -> Document:
        """A document for a prompt, with what is cached already of the tokens that it begins with, but for its last.

        A document that the prompt goes on from is continued itself. One that it leaves half-way stays beside the new
        one, which shares its pages up to there. `settle` or `give_up` must follow.
        """
        shared = [self._shared(document, prompt) for document in self._kept]
        self._continued = None
        best = max(range(len(shared)), key=lambda place: (shared[place], place), default=None)
        grown = dataclasses.replace(prompt, input_ids=array("i", prompt.input_ids))
        if best is None or shared[best] == 0:
            document = Document(grown, KVCache(self.max_length, self.shares))
        elif shared[best] == self._kept[best].cache.length:
            self._continued = self._kept.pop(best)
            document = Document(grown, self._continued.cache)
        else:
            self._kept.append(self._kept.pop(best))
            document = Document(grown, self._kept[-1].cache.fork(shared[best]))
        self._kept.append(document)
        return document

    def room(self) -> list[int]:
        """Bytes on this rank that the current document may count on beside what is free.

        Entry i: its own pages, and what is freed where the i documents that were not used for longest are dropped.
        """
        caches = [document.cache for document in self._kept]
        own, every = allocated_bytes(caches[-1:]), allocated_bytes(caches)
        return [every - allocated_bytes(caches[dropped:]) + own for dropped in range(len(caches))]

    def settle(self, dropped: int) -> None:
        """Forgets the `dropped` documents that were not used for longest, and those beyond the most."""
        del self._kept[: max(dropped, len(self._kept) - self.most)]

    def give_up(self) -> None:
        """Takes back what `begin` did, but that a document which was continued counts as used."""
        if self._continued is None:
            self._kept.pop()
        else:
            self._kept[-1] = self._continued

    def _shared(self, document: Document, prompt: Prompt) -> int:
        limit = min(len(prompt) - 1, document.cache.length)
        return common_prefix(document.prompt, prompt, self.tokens_per_tile, limit)
