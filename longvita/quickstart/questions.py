"""The questions of the four stages, with their answers.

A sample is a list of things to draw and a conversation about them. What makes the tasks learnable in minutes: every
picture has a name in the text before it, an answer repeats its subject ("Name B." - "B=7"), and a sample asks as many
questions as its sequence holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["digit", "marker", "noise"]

NREP=1
BEFORE=False
OREP=1
MAX_PICTURES = 6
"""Most pictures of a stage 2 sample."""
NAMES = "ABCDEF"
"""Names of the pictures of a sample, in order."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Digits and counts as they are written."""
NAME_THE_DIGIT = "digit?"
"""The question of stages 1 and 4."""
SUBJECTS = ("digit", "after", "largest", "smallest", "last", "pictures", "count", "any")
"""First words of answers beside the pictures' names."""
TELL_ALL = "Tell all."
"""Asks for everything that the other questions of stage 2 ask, in any order."""
AFTER_THE_MARKER = "after?"
"""The question of stage 3."""


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
    """Drawings shown as pictures or as the frames of one video, and the turns of a conversation about them."""

    drawings: tuple[Drawing, ...]
    is_video: bool
    turns: tuple[Question, ...]
    """Questions in turn, with their answers."""

    def messages(self) -> list[dict[str, str]]:
        """The conversation in the form of the published JSONL, with a mark where each picture or the video stands."""
        messages = []
        for index, turn in enumerate(self.turns):
            text = f"{self._media_text()}{turn.text}" if index == 0 else turn.text
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _media_text(self) -> str:
        if self.is_video:
            return "<video>\n"
        if len(self.turns) == 1 and self.turns[0].text == NAME_THE_DIGIT:
            return "<image>\n"
        if BEFORE: return "".join(f"{NAMES[index]}:<image>\n" for index in range(len(self.drawings)))
        return "".join(f"<image>{NAMES[index]}\n" for index in range(len(self.drawings)))


def name_the_digit(scan: int, labels: np.ndarray) -> Sample:
    """Stage 1: one picture, name its digit."""
    return Sample((Drawing("digit", scan),), False, (Question(NAME_THE_DIGIT, f"digit {WORDS[labels[scan]]}"),))


# Stage 2: questions about one to six pictures, each a function of the digits shown.


def _name(digits: Sequence[int], rng: np.random.Generator) -> Question:
    index = int(rng.integers(len(digits)))
    return Question(f"{NAMES[index]}?", f"{NAMES[index]} {WORDS[digits[index]]}")


def _count(digits: Sequence[int], rng: np.random.Generator) -> Question:
    digit = int(rng.choice(digits)) if rng.random() < 0.75 else int(rng.integers(10))
    return Question(f"count {WORDS[digit]}?", f"count {WORDS[digit]} {WORDS[list(digits).count(digit)]}")


def _any(digits: Sequence[int], rng: np.random.Generator) -> Question:
    absent = [digit for digit in range(10) if digit not in digits]
    digit = int(rng.choice(digits)) if rng.random() < 0.5 else int(rng.choice(absent))
    return Question(f"any {WORDS[digit]}?", f"any {WORDS[digit]} {'yes' if digit in digits else 'no'}")


def _largest(digits: Sequence[int], rng: np.random.Generator) -> Question:
    return Question("largest?", f"largest {WORDS[max(digits)]}")


def _smallest(digits: Sequence[int], rng: np.random.Generator) -> Question:
    return Question("smallest?", f"smallest {WORDS[min(digits)]}")


def _last(digits: Sequence[int], rng: np.random.Generator) -> Question:
    return Question("last?", f"last {WORDS[digits[-1]]}")


def _pictures(digits: Sequence[int], rng: np.random.Generator) -> Question:
    return Question("pictures?", f"pictures {WORDS[len(digits)]}")


PICTURE_QUESTIONS: dict[str, Callable[[Sequence[int], np.random.Generator], Question]] = {
    "name": _name,
    "count": _count,
    "any": _any,
    "largest": _largest,
    "smallest": _smallest,
    "last": _last,
    "pictures": _pictures,
}
"""Kinds of stage 2's questions."""


def draw_scans(count: int, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[int]:
    """`count` scans at random; in half of the cases of few different digits, so that digits repeat."""
    if rng.random() < 0.5:
        allowed = rng.choice(10, size=min(3, count), replace=False)
        scans = scans[np.isin(labels[scans], allowed)]
    return [int(scan) for scan in rng.choice(scans, size=count)]


def about_pictures(
    scans: Sequence[int],
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    token_budget: int = 0,
    count_tokens: Callable[[Sample], int] | None = None,
) -> Sample:
    """Stage 2: one question of `kind` (any when None) about the pictures, then all there is to tell, to fill a budget.

    token_budget: tokens that the sample may take; 0 asks the one question alone.
    """
    digits = [int(labels[scan]) for scan in scans]
    drawings = tuple(Drawing("digit", scan) for scan in scans)
    kinds = list(PICTURE_QUESTIONS)
    question = PICTURE_QUESTIONS[kind or kinds[rng.integers(len(kinds))]](digits, rng)
    sample = Sample(drawings, False, (question,))
    if not token_budget or count_tokens is None:
        return sample
    turns = [question]
    for question in _more_questions(digits, rng):
        turns.append(question)
        longer = Sample(drawings, False, tuple(turns))
        if count_tokens(longer) > token_budget:
            break
        sample = longer
    return sample


def _more_questions(digits: Sequence[int], rng: np.random.Generator) -> list[Question]:
    """Every picture's name, and as many questions of the other kinds, in a random order."""
    questions = [Question(f"{NAMES[index]}?", f"{NAMES[index]} {WORDS[digit]}") for index, digit in enumerate(digits)]
    questions = questions*NREP
    others = [kind for kind in PICTURE_QUESTIONS if kind != "name"]
    questions += [PICTURE_QUESTIONS[others[rng.integers(len(others))]](digits, rng) for _ in digits]*OREP
    return [questions[index] for index in rng.permutation(len(questions))]


# Stages 3 and 4: questions about one video.


def after_the_marker(
    frames: int, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Sample:
    """Stage 3: a video of digits with one checkerboard frame; which digit comes right after it."""
    drawings = [Drawing("digit", int(scan)) for scan in rng.choice(scans, size=frames)]
    marker = int(rng.integers(frames - 1))
    drawings[marker] = Drawing("marker")
    answer = f"after {WORDS[labels[drawings[marker + 1].scan]]}"
    return Sample(tuple(drawings), True, (Question(AFTER_THE_MARKER, answer),))


def digit_in_noise(
    frames: int, depth: float, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Sample:
    """Stage 4: a video of noise with one digit at `depth` (0 first frame, 1 last frame); which digit."""
    drawings = [Drawing("noise")] * frames
    scan = int(rng.choice(scans))
    drawings[round(depth * (frames - 1))] = Drawing("digit", scan)
    return Sample(tuple(drawings), True, (Question(NAME_THE_DIGIT, f"digit {WORDS[labels[scan]]}"),))
