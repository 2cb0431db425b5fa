"""The questions of the four stages, with their answers.

A sample is a list of things to draw and a conversation about them. What makes the tasks learnable in minutes: a name
stands in the text after each picture, an answer repeats the question's words before it tells the value ("B?" -
"B seven", "count six?" - "count six two"), and a training sample asks as many questions as its sequence holds, in turns
as short as those it is asked in later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["digit", "marker", "noise"]

MAX_PICTURES = 6
"""Most pictures of a stage 2 sample."""
NAMES = "ABCDEF"
"""Names of the pictures of a sample, in order."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Digits and counts as they are written: one token each after a space."""
SUBJECTS = ("digit", "after", "largest", "smallest", "last", "pictures", "count", "any")
"""What questions ask for, beside the pictures' names."""
NAME_THE_DIGIT = "digit?"
"""The question of stages 1 and 4: which digit is seen."""
AFTER_THE_MARKER = "after?"
"""The question of stage 3: which digit comes right after the marker."""
_WEIGHTS = {"name": 1.5, "count": 4.0, "any": 1.5, "largest": 1.5, "smallest": 1.0, "last": 0.75, "pictures": 0.25}
"""How often a stage 2 sample for training asks questions of each kind; those that are hard to learn more often."""
_DRAWS = 1000
"""Tries for a question that was not asked yet; the pictures may have no more of them."""
_FEW_DIGITS = 3
"""Different digits, at most, of the half of the stage 2 samples in which digits repeat."""


@dataclass(frozen=True)
class Drawing:
    """One picture or frame to draw."""

    kind: Kind
    scan: int = -1
    """Index of the digit's scan; -1 for what is no digit."""


@dataclass(frozen=True)
class Question:
    """A question and its right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """Drawings shown as pictures or as the frames of one video, and questions about them, a turn each."""

    drawings: tuple[Drawing, ...]
    is_video: bool
    turns: tuple[Question, ...]
    named: bool = False
    """Whether each picture has its name in the text after it."""

    def messages(self) -> list[dict[str, str]]:
        """The conversation in the form of the published JSONL, with a mark where each picture or the video stands."""
        messages = []
        for index, turn in enumerate(self.turns):
            text = self._media_text() + turn.text if index == 0 else turn.text
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": turn.answer}]
        return messages

    def _media_text(self) -> str:
        if self.is_video:
            return "<video>\n"
        names = NAMES[: len(self.drawings)] if self.named else ""
        return "".join(f"<image>{name}\n" for name in names) or "<image>\n" * len(self.drawings)


def name_the_digit(scan: int, labels: np.ndarray) -> Sample:
    """Stage 1: one picture, name its digit."""
    return Sample((Drawing("digit", scan),), False, (_answered("digit", labels[scan]),))


def _answered(subject: str, value: int | str) -> Question:
    return Question(f"{subject}?", f"{subject} {value if isinstance(value, str) else WORDS[value]}")


# Stage 2: questions about one to six pictures, each a function of the digits shown.


def _name(digits: Sequence[int], rng: np.random.Generator) -> Question:
    index = int(rng.integers(len(digits)))
    return _answered(NAMES[index], digits[index])


def _count(digits: Sequence[int], rng: np.random.Generator) -> Question:
    digit = int(rng.choice(digits)) if rng.random() < 0.75 else int(rng.integers(10))
    return _answered(f"count {WORDS[digit]}", list(digits).count(digit))


def _any(digits: Sequence[int], rng: np.random.Generator) -> Question:
    absent = [digit for digit in range(10) if digit not in digits]
    digit = int(rng.choice(digits)) if rng.random() < 0.5 else int(rng.choice(absent))
    return _answered(f"any {WORDS[digit]}", "yes" if digit in digits else "no")


PICTURE_QUESTIONS: dict[str, Callable[[Sequence[int], np.random.Generator], Question]] = {
    "name": _name,
    "count": _count,
    "any": _any,
    "largest": lambda digits, rng: _answered("largest", max(digits)),
    "smallest": lambda digits, rng: _answered("smallest", min(digits)),
    "last": lambda digits, rng: _answered("last", digits[-1]),
    "pictures": lambda digits, rng: _answered("pictures", len(digits)),
}
"""Stage 2's kinds of questions."""


def choose_scans(count: int, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[int]:
    """`count` scans at random; in half of the cases of few different digits, so that digits repeat."""
    if rng.random() < 0.5:
        allowed = rng.choice(10, size=min(_FEW_DIGITS, count), replace=False)
        scans = scans[np.isin(labels[scans], allowed)]
    return [int(scan) for scan in rng.choice(scans, size=count)]


def about_pictures(scans: Sequence[int], labels: np.ndarray, rng: np.random.Generator, kind: str) -> Sample:
    """Stage 2, held out: one question of `kind` about the pictures."""
    digits = [int(labels[scan]) for scan in scans]
    return _named_pictures(scans, [PICTURE_QUESTIONS[kind](digits, rng)])


def much_about_pictures(
    scans: Sequence[int],
    labels: np.ndarray,
    rng: np.random.Generator,
    token_budget: int,
    count_tokens: Callable[[Sample], int],
) -> Sample:
    """Stage 2, training: different questions, a turn each, as many as fit or as there are; then all names in one turn.

    The sample takes `token_budget` tokens at most, if the names alone do.
    """
    digits = [int(labels[scan]) for scan in scans]
    kinds = list(PICTURE_QUESTIONS)
    weights = np.array([_WEIGHTS[kind] for kind in kinds])
    names = [_answered(NAMES[index], digits[index]) for index in rng.permutation(len(digits))]
    all_names = Question("\n".join(q.text for q in names), "\n".join(q.answer for q in names))
    asked: list[Question] = []
    sample = _named_pictures(scans, [all_names])
    for _ in range(_DRAWS):
        question = PICTURE_QUESTIONS[kinds[rng.choice(len(kinds), p=weights / weights.sum())]](digits, rng)
        if question in asked:
            continue
        asked.append(question)
        longer = _named_pictures(scans, [*asked, all_names])
        if count_tokens(longer) > token_budget:
            break
        sample = longer
    return sample


def _named_pictures(scans: Sequence[int], turns: Sequence[Question]) -> Sample:
    return Sample(tuple(Drawing("digit", scan) for scan in scans), False, tuple(turns), named=True)


# Stages 3 and 4: a question about one video.


def after_the_marker(frames: int, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Sample:
    """Stage 3: a video of digits with one checkerboard frame; which digit comes right after it."""
    drawings = [Drawing("digit", int(scan)) for scan in rng.choice(scans, size=frames)]
    marker = int(rng.integers(frames - 1))
    drawings[marker] = Drawing("marker")
    return Sample(tuple(drawings), True, (_answered("after", labels[drawings[marker + 1].scan]),))


def digit_in_noise(
    frames: int, depth: float, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Sample:
    """Stage 4: a video of noise with one digit at `depth` (0 first frame, 1 last frame); which digit."""
    drawings = [Drawing("noise")] * frames
    scan = int(rng.choice(scans))
    drawings[round(depth * (frames - 1))] = Drawing("digit", scan)
    return Sample(tuple(drawings), True, (_answered("digit", labels[scan]),))
