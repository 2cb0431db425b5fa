"""Streams the text of an answer as its tokens arrive, never splitting a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
WINDOW_TOKENS = 16


class StreamingDetokenizer:
    """Converts token ids to pieces of text. Joined, the pieces are the text of all ids.

    A byte-level tokenizer may spread one character over several tokens; its first bytes alone decode to a U+FFFD at the
    end of the text. A final U+FFFD is therefore held back until the next token or `flush`.

    Args:
        decode: ids to text. A token's text may depend on its neighbours only inside a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0

    def add(self, token: int) -> str:
        """Add a token and return the text that is final with it; often one word, sometimes empty."""
        self._window.append(token)
        text = self._decode(self._window)
        stable = text[:-1] if text.endswith(REPLACEMENT) else text
        piece = stable[self._emitted :]
        self._emitted = max(self._emitted, len(stable))
        if len(stable) == len(text) and len(self._window) >= WINDOW_TOKENS:
            # No character is incomplete here, so earlier ids cannot change later text.
            self._window, self._emitted = [], 0
        return piece

    def flush(self) -> str:
        """Return the text still held back, at the end of an answer."""
        piece = self._decode(self._window)[self._emitted :] if self._window else ""
        self._window, self._emitted = [], 0
        return piece
