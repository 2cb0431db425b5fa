"""The options of a multiple-choice question: their letters and their words."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_LETTER = re.compile(rf"\s*\(?([{LETTERS}])\s*[.):]\s*")


def with_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return the options, each with its letter before it ("B. a dog") where it has none.

    Raises ValueError for options whose letters are others than those of their places, and for fewer than two.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"there are {len(options)}, but a question has 2 to {len(LETTERS)}")
    found = [match[1] if (match := _LETTER.match(option)) else "" for option in options]
    if all(found) and "".join(found) != LETTERS[: len(options)]:
        raise ValueError(f"their letters are {', '.join(found)}, but must be in order")
    places = zip(found, LETTERS, options, strict=False)
    return tuple(option if has == letter else f"{letter}. {option}" for has, letter, option in places)


def option_words(letter: str, option: str) -> str:
    """Return the words of an option in lower case, without its letter and without punctuation."""
    match = _LETTER.match(option)
    return plain_words(option[match.end() :] if match and match[1] == letter else option)


def plain_words(text: str) -> str:
    """Return the words of a text in lower case, with one space between them."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
