"""Text of an answer piece by piece as its tokens come, never cutting a character in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
WINDOW_TOKENS = 16


class StreamingDetokenizer:
    """Turns token ids into text pieces whose concatenation is the text of all of them.

    A byte-level tokenizer may spread one character over several tokens; decoded alone, its first bytes read as one
    U+FFFD at the end of the text. So a last U+FFFD is held back until the next token or `flush` decides.

    Args:
        decode: ids to text, where a token's text may depend on its neighbours only within a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0

    def add(self, token: int) -> str:
        """The text that is certain with this token and was not before; often one word, sometimes empty."""
        self._window.append(token)
        text = self._decode(self._window)
        stable = text[:-1] if text.endswith(REPLACEMENT) else text
        piece = stable[self._emitted :]
        self._emitted = max(self._emitted, len(stable))
        if len(stable) == len(text) and len(self._window) >= WINDOW_TOKENS:
            # No character is open, so the ids before this point cannot change the text after it.
            self._window, self._emitted = [], 0
        return piece

    def flush(self) -> str:
        """What is still held back, at the end of an answer."""
        piece = self._decode(self._window)[self._emitted :] if self._window else ""
        self._window, self._emitted = [], 0
        return piece
