"""Questions: every answer equals one computed independently from the drawings."""

from __future__ import annotations

import numpy as np
import pytest

from tools.quickstart import digits, questions
from tools.quickstart.questions import NAMES, PICTURE_QUESTIONS, WORDS, DigitSample

DATA = digits.load()


def shown(sample: DigitSample) -> list[int]:
    return [int(DATA.labels[drawing.scan]) for drawing in sample.drawings]


def right_answer(question: str, seen: list[int]) -> str:
    """The answer to a stage 2 question, from its words."""
    subject = question.removesuffix("?")
    first, _, argument = subject.partition(" ")
    if first in NAMES:
        value = WORDS[seen[NAMES.index(first)]]
    elif first == "count":
        value = WORDS[seen.count(WORDS.index(argument))]
    elif first == "any":
        value = "yes" if WORDS.index(argument) in seen else "no"
    else:
        facts = {"largest": max(seen), "smallest": min(seen), "last": seen[-1], "pictures": len(seen)}
        value = WORDS[facts[first]]
    return f"{subject} {value}"


def words(sample: DigitSample) -> int:
    """A substitute for the number of tokens."""
    return sum(len(message["content"].split()) for message in sample.messages())


@pytest.mark.parametrize("kind", PICTURE_QUESTIONS)
def test_answers_about_pictures(kind):
    rng = np.random.default_rng(3)
    given = set()
    for _ in range(200):
        scans = questions.choose_scans(int(rng.integers(1, 7)), DATA.train, DATA.labels, rng)
        sample = questions.about_pictures(scans, DATA.labels, rng, kind)
        (turn,) = sample.turns
        assert turn.answer == right_answer(turn.text, shown(sample))
        given.add(turn.answer.split()[-1])
    assert len(given) >= 2, "an answer that never changes needs no picture"


def test_training_samples_have_many_questions_within_their_budget():
    rng = np.random.default_rng(4)
    for _ in range(100):
        scans = questions.choose_scans(int(rng.integers(1, 7)), DATA.train, DATA.labels, rng)
        sample = questions.much_about_pictures(scans, DATA.labels, rng, 40, words)
        assert words(sample) <= 40
        pairs = [
            pair for turn in sample.turns for pair in zip(turn.text.split("\n"), turn.answer.split("\n"), strict=True)
        ]
        assert len(pairs) >= 3
        for question, answer in pairs:
            assert answer == right_answer(question, shown(sample))


def test_a_training_sample_ends_after_all_questions():
    scans = questions.choose_scans(1, DATA.train, DATA.labels, np.random.default_rng(6))
    sample = questions.much_about_pictures(scans, DATA.labels, np.random.default_rng(6), 10_000, words)
    asked = [turn.text for turn in sample.turns]
    # The name, largest, smallest, last, pictures, and count and any of each digit; then the names again.
    assert len(asked) == 5 + 20 + 1
    assert len(set(asked[:-1])) == 5 + 20


def test_messages_name_each_picture():
    rng = np.random.default_rng(5)
    sample = questions.about_pictures([0, 1, 2], DATA.labels, rng, "last")
    user, assistant = sample.messages()
    assert user == {"role": "user", "content": "<image>A\n<image>B\n<image>C\nlast?"}
    assert assistant == {"role": "assistant", "content": f"last {WORDS[DATA.labels[2]]}"}


def test_name_the_digit():
    user, assistant = questions.name_the_digit(7, DATA.labels).messages()
    assert user["content"] == "<image>\ndigit?"
    assert assistant["content"] == f"digit {WORDS[DATA.labels[7]]}"


def test_after_the_marker():
    rng = np.random.default_rng(6)
    places = set()
    for frames in (2, 8, 64) * 20:
        sample = questions.after_the_marker(frames, DATA.train, DATA.labels, rng)
        kinds = [drawing.kind for drawing in sample.drawings]
        assert (len(kinds), kinds.count("marker"), kinds.count("digit")) == (frames, 1, frames - 1)
        place = kinds.index("marker")
        places.add(place)
        following = sample.drawings[place + 1].scan
        assert sample.turns[0].answer == f"after {WORDS[DATA.labels[following]]}"
        assert sample.messages()[0]["content"] == "<video>\nafter?"
    assert len(places) > 10


@pytest.mark.parametrize("depth, place", [(0.0, 0), (0.25, 10), (0.5, 20), (1.0, 40)])
def test_digit_in_noise(depth, place):
    sample = questions.digit_in_noise(41, depth, DATA.held_out, DATA.labels, np.random.default_rng(7))
    kinds = [drawing.kind for drawing in sample.drawings]
    assert kinds.count("noise") == 40
    assert kinds.index("digit") == place
    scan = sample.drawings[place].scan
    assert scan in DATA.held_out
    assert sample.turns[0].answer == f"digit {WORDS[DATA.labels[scan]]}"
