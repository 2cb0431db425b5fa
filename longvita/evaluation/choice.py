"""The option that a model's answer to a multiple-choice question names, as a person reads it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from longvita.evaluation.option_text import LETTERS, option_words, plain_words

# Parts of patterns: @ stands for a capital letter of an option; words are matched in any case.
_WORD = r"0-9A-Za-zÀ-ɏ_'"
"""Characters that make a letter next to them a part of a word; those of languages without spaces do not."""
_LETTER = rf"(?<![{_WORD}])(?<![{_WORD}]-)(?:[(\[{{]\s*)?@(?:\s*[)\]}}])?(?![{_WORD}]|-[{_WORD}])"
_LIST = (
    rf"(?:\s*(?:(?:,\s*)?(?i:\band\b|\bor\b|\bnor\b|&|/|\+)\s*(?i:(?:option|choice|answer)\s+)?{_LETTER}"
    rf"|,\s*{_LETTER}(?=\s*(?:[,.;:!?&/]|$|(?i:and|or|nor)\b)))){{0,9}}+"
)
_LETTERS = rf"(?P<named>{_LETTER}{_LIST})"
_FILLERS = (
    r"(?i:[\s:=>-]|\.\.\.|\b(?:the|this|that|to|of|for|in|on|by|as|question|should|would|must|could|can|might|may|will|"
    r"has|have|be|is|are|was|it's|it|seems|appears|looks|probably|likely|most|therefore|thus|so|hence|clearly|"
    r"definitely|best|correct|right|final|option|choice|letter|answer|given|follows|here|but|rather|instead|actually|"
    r"with|es|la|el|le|est|ist|die|der|lautet|correcta|correcte|richtige|opción)\b|是|为|為|应该|應該|项|項){0,30}+"
)
_IS = r"(?:is|was|would be|must be|should be|has to be|could be|might be|may be|seems(?: to be)?|appears to be)"
_LEADS = (
    r"(?i:\b(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ)\b|答案|答え|正解|정답)",
    rf"(?i:\b(?:right|correct|best|true|proper|final)(?:\s+(?:one|option|choice|letter|response|statement|match))?\s*(?:{_IS}\b|[:=-]))",
    rf"(?i:\b(?:option|choice|conclusion|selection|solution)\s*(?:{_IS}\b|[:=]))",
    rf"(?i:\b(?:it|that|this)(?:'s|\s+{_IS})(?!\w))",
    r"(?i:\b(?:choos(?:e|ing)|chose|pick(?:ing)?|select(?:ing)?|go(?:ing)? (?:with|for)|went with|opt(?:ing)? for|"
    r"guess|say|vote for|settle on|conclude|lean(?:ing)? towards?|think|believe|maybe|perhaps|probably|possibly|likely|"
    r"actually|therefore|hence|thus)\b,?)",
    r"(?i:\b(?:no|wait|correction),)",
    r"(?:选择|選擇|选项|選項|选|選|是)",
)
"""What stands before the letter of a conclusion, with fillers between them."""
_SMALL = r"(?P<named>(?<![\w'])[(\[]?[a-j][)\]]?(?=\s*(?:$|\n|[.,;:)])))"
_ADVERBS = (
    r"(?:(?:the|a|an|also|clearly|definitely|indeed|most|likely|probably|more|simply|just|only|"
    r"therefore|obviously|common|both|all)\s+)*"
)
_CONCLUSIONS = (
    *(rf"{lead}{_FILLERS}{_LETTERS}" for lead in _LEADS),
    rf"{_LEADS[0]}{_FILLERS}{_SMALL}",
    rf"{_LETTERS}(?i:\s+(?:{_IS}|are)\s+{_ADVERBS}(?:correct|right|true|best|answer|accurate)\b|\s*[:-]\s*(?:yes|correct|right|true)\b)",
    r"(?:\n|[.!?:;]\s)\W*(?P<named>@)\W*$",
)
_NOT = (
    r"(?i:\b(?:not|never|neither|nor|than|whether|if|except|excluding|without|unlike|instead of|wrong|incorrect|cannot|"
    r"\w+n't|eliminat\w+|exclude[sd]?|discard\w*|reject\w*|rul(?:e|es|ed|ing) out)\b|不是|不选|不選|排除)"
    r"(?i:[\s:,]|\b(?:the|to|be|have|been|it's|it|is|was|either|answer|options?|choices?|choose|pick|select|say|go|with|"
    r"for|letter|correct|right|think|believe|that)\b){0,30}+"
)
_WRONG = (
    rf"\s*(?i:[:-]\s*(?:no|not|wrong|incorrect|false)\b"
    rf"|\s(?:{_IS}|are|were|looks?|can be|could be)\s+{_ADVERBS}(?:wrong|incorrect|false|not|never|impossible|ruled|"
    r"eliminated|excluded|discarded|rejected|irrelevant|unlikely|out|distractors?|traps?|mistakes?)\b"
    r"|\s(?:\w+n't|cannot|does not|do not|did not|fails?)\b)"
)
_REJECTED = (rf"{_LETTER}{_LIST}(?=\s+(?i:are|were|do|don't|aren't)\b){_WRONG}", _LETTER + _WRONG, f"{_NOT}{_LETTERS}")
_NO_LETTER = re.compile(
    r"(?<!ption )(?<!hoice )(?<!etter )(?<!PTION )\b[AI](?=\s+(?!(?:is|was|are|because|and|or|since|as|seems|looks|"
    r"would|can|cannot|could|must|has|matches|fits|fails|does|rather|but|not|over|should)\b|\w+n't)[a-z])"
)
"""An A or I before a lower-case word that does not continue a sentence about the option: article or pronoun."""
_REFUSAL = re.compile(
    r"(?i)\b(?:(?:can't|cannot|can not|couldn't|could not|unable to|not able to|impossible to|not possible to|"
    r"refuse to|decline to)\s+"
    r"(?:\w+\s+){0,2}?(?:answer|determine|determined|answered|tell|say|see|view|watch|access|analy[sz]e|identify|choose|"
    r"provide|process|know|assist|help)|don't know|do not know|no idea|none of|not enough information|"
    r"insufficient information|sorry|as an ai)\b"
)
_NOT_BEFORE = re.compile(r"(?:\b(?:not|never|than|nor|neither|instead of|without)|\w+n t)(?: (?:a|an|the))?$")


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that `answer` names; None when it names none, or more than one.

    The first of these that is found counts: a letter alone; the words of one option alone; the last conclusion ("the
    answer is C", "C is correct", "I choose C"); the letter, or the words of an option, that the answer begins with; a
    letter after "option"; the words of exactly one option; exactly one capital letter. Letters that the answer rejects
    ("not B", "B is wrong") do not count. After a refusal, and where the answer lists the options, only a letter alone
    and a conclusion count. `options` may begin with their letters.
    """
    letters = LETTERS[: len(options)]
    words = {letter: option_words(letter, option) for letter, option in zip(letters, options, strict=True)}
    for found in _readings(_without_markup(answer), letters, words):
        if found:
            return found.pop() if len(found) == 1 and found <= set(letters) else None
    return None


def _readings(text: str, letters: str, words: dict[str, str]) -> Iterator[set[str]]:
    """Yield the letters that the answer names by each of the rules, the strongest first."""
    if alone := re.fullmatch(rf"\W*([{letters}{letters.lower()}])\W*", text):
        yield {alone[1].upper()}
    yield _with_words(plain_words(text), words)
    # Of ten options, I is one; elsewhere it is the pronoun.
    known = LETTERS if "I" in letters else LETTERS.replace("I", "")
    text = _NO_LETTER.sub(lambda match: match[0].lower(), text)
    for rejected in _REJECTED:
        text = re.sub(rejected.replace("@", f"[{known}]"), " ", text)
    yield _conclusion(text, known)
    refused = _REFUSAL.search(text) and not any(_REFUSAL.search(option) for option in words.values())
    if refused or _lists_options(text, letters):
        return
    if first := re.match(rf"[\s(\[]*([{letters}]\s*[.):\]-]|[{letters.lower()}][.):\]])", text):
        more = re.match(rf"{_LETTER}{_LIST}".replace("@", f"[{known}]"), text)
        yield set(re.findall(f"[{known}]", more[0])) if more else {first[1][0].upper()}
    yield _with_words(plain_words(re.split(r"(?i)[.;:!?\n]|(?<=^yes),|(?<=^no),", text.strip(), maxsplit=1)[0]), words)
    yield _letters_of(rf"(?i:\b(?:option|choice)(?:\s+is)?\s*:?\s*){_LETTER}", text, known)
    yield _named_in_words(plain_words(text), words)
    yield _letters_of(_LETTER, text, known)


def _without_markup(answer: str) -> str:
    """Return the answer without reasoning marks, Markdown, TeX, tags and quotes; of a marked answer its content."""
    text = unicodedata.normalize("NFKC", answer)
    text = re.split(r"(?i)</think(?:ing)?>", text)[-1]
    text = re.sub(r"(?is)<think(?:ing)?>.*", "", text)
    text = re.sub(r"\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    for mark in (r"(?is)<answer>(.*?)(?:</answer>|$)", r"\\f?boxed\s*\{([^{}]*)\}"):
        if marked := re.findall(mark, text):
            text = f"Answer: {marked[-1]}" if len(marked[-1].strip()) == 1 else marked[-1]
    text = re.sub(r"<\|[^|<>]*\|>|</?[a-zA-Z][^<>\n]*>", " ", text)
    text = re.sub(r"[*`$_#~\\\"“”„«»「」『』‹›]", "", text)
    text = re.sub("[‘’‛]", "'", re.sub("[–—−‐‑]", "-", text))
    return re.sub(r"(?<!\w)'\s*(\(?[A-Ja-j]\)?[.:]?)\s*'(?!\w)", r"\1", text).strip()


def _conclusion(text: str, known: str) -> set[str]:
    """The letters of the last conclusion; with more than one it does not decide."""
    found: list[tuple[int, str]] = []
    for template in _CONCLUSIONS:
        for match in re.finditer(template.replace("@", f"[{known}]"), text):
            found.append((match.start("named"), match["named"]))
    if not found:
        return set()
    _, named = max(found)
    single = re.fullmatch(r"\W*([a-j])\W*", named)
    return {single[1].upper()} if single else _letters_of(_LETTER, named, known)


def _letters_of(template: str, text: str, known: str) -> set[str]:
    matches = re.finditer(template.replace("@", f"([{known}])"), text)
    return {match[1] for match in matches}


def _lists_options(text: str, letters: str) -> bool:
    """Whether the answer repeats the options: "A. ... B. ..." from the first on."""
    marks = re.findall(rf"(?:^|\s)\(?([{letters}])[.):]\s", text)
    return len(marks) > 1 and "".join(marks[:2]) == letters[:2]


def _with_words(text: str, words: dict[str, str]) -> set[str]:
    return {letter for letter, option in words.items() if option and option == text}


def _named_in_words(text: str, words: dict[str, str]) -> set[str]:
    """Letters of the options whose words occur in the text, other than negated or as a part of a longer option's."""
    places = {
        letter: [match.span() for match in re.finditer(rf"\b{re.escape(option)}\b", text)]
        for letter, option in words.items()
        if option
    }

    def counts(letter: str, span: tuple[int, int]) -> bool:
        others = (other for name, spans in places.items() if name != letter for other in spans)
        inside = any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in others)
        return not inside and not _NOT_BEFORE.search(text[: span[0]].rstrip())

    return {letter for letter, spans in places.items() if any(counts(letter, span) for span in spans)}
