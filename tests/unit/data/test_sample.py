from __future__ import annotations

import json

import pytest

from longvita.data.errors import Reason, SampleError
from longvita.data.sample import Turn, mark_media, parse_line, parse_sample

QUESTION, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


def test_published_form():
    value = {
        "id": 7,
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "<image><video>?"}, ANSWER],
        "images": ["a.png"],
        "videos": ["b.mp4"],
    }
    sample = parse_line(json.dumps(value).encode())
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]
    assert (sample.images, sample.videos) == (("a.png",), ("b.mp4",))


@pytest.mark.parametrize("images", [None, []])
def test_older_form(images):
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    sample = parse_sample({"conversations": turns, "images": images})
    assert sample.turns == (Turn("user", "hello"), Turn("assistant", "hi"))
    assert sample.images == ()


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{", Reason.INVALID_JSON),
        (b"\xff\xfe{}", Reason.INVALID_JSON),
        (b"[" * 100_000, Reason.INVALID_JSON),
        (b"[1]", Reason.INVALID_SAMPLE),
        (b"{}", Reason.INVALID_SAMPLE),
        (b'{"messages": "hello"}', Reason.INVALID_SAMPLE),
        (b'{"messages": ["hello"]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": 3}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', Reason.INVALID_SAMPLE),
    ],
)
def test_malformed_lines(line, reason):
    with pytest.raises(SampleError) as caught:
        parse_line(line)
    assert caught.value.reason == reason


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_empty_turn(text):
    with pytest.raises(SampleError, match=r"turn 1 \(assistant\) has no text") as caught:
        parse_sample({"messages": [QUESTION, {"role": "assistant", "content": text}]})
    assert caught.value.reason == Reason.EMPTY_TURN


def test_nothing_to_learn():
    with pytest.raises(SampleError) as caught:
        parse_sample({"messages": [QUESTION]})
    assert caught.value.reason == Reason.NO_ANSWER


@pytest.mark.parametrize("paths", ["a.png", [3], [""], ["a\0b"], ["a\ud800.png"], {"a": 1}])
def test_bad_paths(paths):
    with pytest.raises(SampleError) as caught:
        parse_sample({"messages": [QUESTION, ANSWER], "images": paths})
    assert caught.value.reason == Reason.INVALID_SAMPLE


@pytest.mark.parametrize(
    "text, media, message",
    [
        ("<image>", {}, "1 <image> marks for 0 pictures"),
        ("hello", {"images": ["a.png"]}, "0 <image> marks for 1 pictures"),
        ("<image><image>", {"images": ["a.png"]}, "2 <image> marks for 1 pictures"),
        ("<video>", {"images": ["a.png"]}, "0 <image> marks"),
        ("<video>", {"videos": ["a.mp4", "b.mp4"]}, "1 <video> marks for 2 videos"),
    ],
)
def test_marks_must_match(text, media, message):
    with pytest.raises(SampleError, match=message) as caught:
        parse_sample({"messages": [{"role": "user", "content": text}, ANSWER], **media})
    assert caught.value.reason == Reason.MARK_COUNT


def test_marks_for_a_question_without_any():
    assert mark_media("why?", 2, 1) == "<image>\n<image>\n<video>\nwhy?"
