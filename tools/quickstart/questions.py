"""The questions of the four stages, with their answers.

A sample is a list of drawings and a conversation about them. Three properties make the tasks learnable in minutes: the
text after each picture has its name, an answer repeats the question's words before the value ("B?" - "B seven",
"count six?" - "count six two"), and a training sample has as many questions as fit its sequence, in turns as short as
those of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["digit", "marker", "noise"]

MAX_PICTURES = 6
"""Maximum number of pictures in a stage 2 sample."""
NAMES = "ABCDEF"
"""Names of the pictures of a sample, in order."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words for digits and counts: one token each after a space."""
SUBJECTS = ("digit", "after", "largest", "smallest", "last", "pictures", "count", "any")
"""Subjects of questions, in addition to the pictures' names."""
NAME_THE_DIGIT = "digit?"
"""The question of stages 1 and 4: which digit the picture or video shows."""
AFTER_THE_MARKER = "after?"
"""The question of stage 3: which digit comes right after the marker."""
_WEIGHTS = {"name": 1.5, "count": 4.0, "any": 1.5, "largest": 1.5, "smallest": 1.0, "last": 0.75, "pictures": 0.25}
"""Weights of the kinds of questions in stage 2 training samples; harder kinds are more frequent."""
_DRAWS = 1000
"""Maximum number of draws for new questions: the pictures may allow no more."""
_FEW_DIGITS = 3
"""Maximum number of different digits in the half of the stage 2 samples in which digits repeat."""


@dataclass(frozen=True)
class Drawing:
    """One picture or frame to draw."""

    kind: Kind
    scan: int = -1
    """Index of the digit's scan; -1 for other kinds."""


@dataclass(frozen=True)
class DigitQuestion:
    """A question and its right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class DigitSample:
    """Drawings, as pictures or as the frames of a video, and questions about them, one per turn."""

    drawings: tuple[Drawing, ...]
    is_video: bool
    turns: tuple[DigitQuestion, ...]
    named: bool = False
    """Whether the text after each picture has its name."""

    def messages(self) -> list[dict[str, str]]:
        """The conversation in the published JSONL format, with a mark at the place of each picture or of the video."""
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


def name_the_digit(scan: int, labels: np.ndarray) -> DigitSample:
    """Stage 1: one picture, name its digit."""
    return DigitSample((Drawing("digit", scan),), False, (_answered("digit", labels[scan]),))


def _answered(subject: str, value: int | str) -> DigitQuestion:
    return DigitQuestion(f"{subject}?", f"{subject} {value if isinstance(value, str) else WORDS[value]}")


# Stage 2: questions about one to six pictures, each a function of the digits shown.


def _name(digits: Sequence[int], rng: np.random.Generator) -> DigitQuestion:
    index = int(rng.integers(len(digits)))
    return _answered(NAMES[index], digits[index])


def _count(digits: Sequence[int], rng: np.random.Generator) -> DigitQuestion:
    digit = int(rng.choice(digits)) if rng.random() < 0.75 else int(rng.integers(10))
    return _answered(f"count {WORDS[digit]}", list(digits).count(digit))


def _any(digits: Sequence[int], rng: np.random.Generator) -> DigitQuestion:
    absent = [digit for digit in range(10) if digit not in digits]
    digit = int(rng.choice(digits)) if rng.random() < 0.5 else int(rng.choice(absent))
    return _answered(f"any {WORDS[digit]}", "yes" if digit in digits else "no")


PICTURE_QUESTIONS: dict[str, Callable[[Sequence[int], np.random.Generator], DigitQuestion]] = {
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
    """`count` random scans; half of the calls use few different digits, so that digits repeat."""
    if rng.random() < 0.5:
        allowed = rng.choice(10, size=min(_FEW_DIGITS, count), replace=False)
        scans = scans[np.isin(labels[scans], allowed)]
    return [int(scan) for scan in rng.choice(scans, size=count)]


def about_pictures(scans: Sequence[int], labels: np.ndarray, rng: np.random.Generator, kind: str) -> DigitSample:
    """Stage 2, held out: one question of `kind` about the pictures."""
    digits = [int(labels[scan]) for scan in scans]
    return _named_pictures(scans, [PICTURE_QUESTIONS[kind](digits, rng)])


def much_about_pictures(
    scans: Sequence[int],
    labels: np.ndarray,
    rng: np.random.Generator,
    token_budget: int,
    count_tokens: Callable[[DigitSample], int],
) -> DigitSample:
    """Stage 2, training: all different questions that fit, one per turn, then all names in one turn.

    The sample has at most `token_budget` tokens if the turn with the names does not exceed it.
    """
    digits = [int(labels[scan]) for scan in scans]
    kinds = list(PICTURE_QUESTIONS)
    weights = np.array([_WEIGHTS[kind] for kind in kinds])
    names = [_answered(NAMES[index], digits[index]) for index in rng.permutation(len(digits))]
    all_names = DigitQuestion("\n".join(q.text for q in names), "\n".join(q.answer for q in names))
    asked: list[DigitQuestion] = []
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


def _named_pictures(scans: Sequence[int], turns: Sequence[DigitQuestion]) -> DigitSample:
    return DigitSample(tuple(Drawing("digit", scan) for scan in scans), False, tuple(turns), named=True)


# Stages 3 and 4: a question about one video.


def after_the_marker(frames: int, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> DigitSample:
    """Stage 3: a video of digits with one checkerboard frame; which digit comes right after it."""
    drawings = [Drawing("digit", int(scan)) for scan in rng.choice(scans, size=frames)]
    marker = int(rng.integers(frames - 1))
    drawings[marker] = Drawing("marker")
    return DigitSample(tuple(drawings), True, (_answered("after", labels[drawings[marker + 1].scan]),))


def digit_in_noise(
    frames: int, depth: float, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> DigitSample:
    """Stage 4: a video of noise with one digit at `depth` (0 first frame, 1 last frame); which digit."""
    drawings = [Drawing("noise")] * frames
    scan = int(rng.choice(scans))
    drawings[round(depth * (frames - 1))] = Drawing("digit", scan)
    return DigitSample(tuple(drawings), True, (_answered("digit", labels[scan]),))
