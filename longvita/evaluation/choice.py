"""The option that a model's answer to a multiple-choice question names."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_OPEN = r"[\s*(\[\"']*"
_LETTER = r"([{letters}])(?![\w'])"
_ALONE = r"\W*([{letters}{small}])\W*"
_FIRST = _OPEN + r"([{letters}])[\s*]*[.):\]]"
_ANSWER = (
    r"(?i:\banswer(?:\s+(?:is|would be|should be|must be))?\s*:?\s*(?:option|choice)?)"
    + _OPEN
    + r"(?:([{letters}])(?![\w'])|([{small}])(?=\W*$|[.,;)]))"
)
_OPTION = r"(?i:\b(?:option|choice)(?:\s+is)?\s*:?)" + _OPEN + _LETTER
_ANOTHER = r"[\s*)\]\"'.:]*(?:,|/|&|\band\b|\bor\b)" + _OPEN + r"(?i:(?:and|or|option|choice)\s+)*" + _OPEN + _LETTER
_NEGATED = r"(?i:\b(?:not|isn't|than)\s+(?:the\s+)?(?:answer\s+|option\s+|choice\s+)?)\(?" + _LETTER
_ARTICLE = r"\bA(?=\s+(?!(?:is|was|are|because|and|or|since|as|seems|looks|would|can|has|matches|fits)\b)[a-z])"
"""An A before a lower-case word that does not continue a sentence about option A: the article."""


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that `answer` names; None when it names none, or more than one.

    The first of these that is found counts: a letter alone ("C", "(c)."); a letter at the beginning of the answer
    ("B. a dog"); a letter after "answer" or "answer is", the last one if there are several, since it is the conclusion;
    a letter after "option" or "choice"; the words of exactly one option; exactly one capital letter. An A before a noun
    and a letter after "not" do not count. `options` may begin with their letters, as those of Video-MME do.
    """
    letters = LETTERS[: len(options)]
    names = {"letters": letters, "small": letters.lower()}

    def pattern(template: str) -> re.Pattern[str]:
        return re.compile(template.format(**names))

    text = pattern(_NEGATED).sub("", re.sub(_ARTICLE, "", answer.strip()))
    if alone := pattern(_ALONE).fullmatch(text):
        return alone[1].upper()
    named = pattern(_FIRST).match(text) or next(reversed(list(pattern(_ANSWER).finditer(text))), None)
    if named:
        letter = next(filter(None, named.groups())).upper()
        return None if pattern(_ANOTHER).match(text, named.end()) else letter
    for letters_named in (set(pattern(_OPTION).findall(text)), _named_in_words(answer, options)):
        if letters_named:
            return letters_named.pop() if len(letters_named) == 1 else None
    capitals = set(pattern(r"(?<![\w'])" + _LETTER).findall(text))
    return capitals.pop() if len(capitals) == 1 else None


def _named_in_words(answer: str, options: Sequence[str]) -> set[str]:
    """Letters of the options whose words occur in the answer, other than as a part of a longer option's words."""
    text = _plain(answer)
    places: dict[str, list[tuple[int, int]]] = {}
    for letter, option in zip(LETTERS, options, strict=False):
        words = _plain(re.sub(rf"^\s*\(?{letter}[.):]\s*", "", option))
        if words:
            places[letter] = [match.span() for match in re.finditer(rf"\b{re.escape(words)}\b", text)]

    def stands_alone(letter: str, span: tuple[int, int]) -> bool:
        others = (other for name, spans in places.items() if name != letter for other in spans)
        return not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in others)

    return {letter for letter, spans in places.items() if any(stands_alone(letter, span) for span in spans)}


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
