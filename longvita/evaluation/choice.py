"""Which option a model's answer to a multiple-choice question means."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_SAID = r"(?:answer|option|choice)\b\s*(?:is|would be|:|-)?\s*:?[\s*(\[\"']*([{letters}])(?![\w'])"
_ALONE = r"^\W*([{letters}{small}])\W*$"
_FIRST = r"^[\s*(\[\"']*([{letters}])[\s*]*[.):\],]"
_ANYWHERE = r"(?<![\w'])([{letters}])(?![\w'])"


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `answer` names; None when it names none, or more than one.

    Read in this order: a letter alone ("C", "(c)."); a letter after the word answer, option or choice, the last one if
    there are several; a letter that the answer begins with ("B. a dog"); the text of one option, and no other's; one
    single capital letter of the options, where an A in a sentence is no letter.
    `options` may begin with their letters, as those of Video-MME do.
    """
    letters = LETTERS[: len(options)]
    for pattern in (_ALONE, _SAID, _FIRST):
        flags = re.IGNORECASE if pattern is _SAID else 0
        found = re.findall(pattern.format(letters=letters, small=letters.lower()), answer.strip(), flags)
        found = [letter for letter in found if pattern is not _SAID or letter.isupper()]
        if found:
            return found[-1].upper()
    said = _plain(answer)
    texts = {letter: _plain(_without_letter(option, letter)) for letter, option in zip(letters, options, strict=True)}
    named = {letter for letter, text in texts.items() if text and re.search(rf"\b{re.escape(text)}\b", said)}
    # "a red car" is in "a red car and a dog" as well: the longer option is meant.
    named -= {a for a in named for b in named if a != b and texts[a] in texts[b]}
    if len(named) == 1:
        return named.pop()
    alone = set(re.findall(_ANYWHERE.format(letters=letters), answer))
    if re.search(r"(?<![\w'])A\s+[a-z]", answer):
        alone.discard("A")
    return alone.pop() if len(alone) == 1 else None


def _without_letter(option: str, letter: str) -> str:
    return re.sub(rf"^\s*\(?{letter}[.):]\s*", "", option)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
