from __future__ import annotations

import pytest

from longvita.data.errors import Reason, SampleError
from longvita.data.sample import Sample, Turn, chat_role, check_marks, mark_media, parse_turns


@pytest.mark.parametrize(
    "word, role",
    [
        ("Human", "user"),
        (" USER", "user"),
        ("observation", "user"),
        ("tool", "user"),
        ("bot", "assistant"),
        ("GPT", "assistant"),
        ("function_call", "assistant"),
        ("developer", "system"),
        ("Robot", "assistant"),
        ("human", "assistant"),
    ],
)
def test_role_words(word, role):
    more = [("Robot", "assistant"), ("human", "assistant")] if word in ("Robot", "human") else []
    assert chat_role(word, 0, more) == role


@pytest.mark.parametrize("word", ["robot", "", None, 3, ["user"], "x" * 1000])
def test_an_unknown_role_is_named_with_the_fix(word):
    with pytest.raises(
        SampleError, match="turn 4 has the role .*; known are system, .*fix: name its ChatML role"
    ) as got:
        chat_role(word, 4)
    assert len(got.value.detail) < 300


def test_the_messages_of_a_prompt():
    given = [{"role": "user", "content": "<img>a.png</img>?"}, Turn("assistant", "no")]
    assert parse_turns(given) == (Turn("user", "<img>a.png</img>?"), Turn("assistant", "no"))
    for content in ("", "  \n", None):
        with pytest.raises(SampleError, match=r"turn 0 \('user'\) has no text") as caught:
            parse_turns([{"role": "user", "content": content}])
        assert caught.value.reason == Reason.EMPTY_TURN
    for message in ("hello", {"role": "user", "content": [{"type": "image", "image": "a.png"}]}):
        with pytest.raises(SampleError) as caught:
            parse_turns([message])
        assert caught.value.reason == Reason.INVALID_SAMPLE


@pytest.mark.parametrize(
    "text, images, videos, message",
    [
        ("hello", 1, 0, "0 <image> marks for 1 pictures"),
        ("<image><image>", 1, 0, "2 <image> marks for 1 pictures"),
        ("<video>", 1, 0, "0 <image> marks"),
        ("<video>", 0, 2, "1 <video> marks for 2 videos"),
    ],
)
def test_marks_must_match(text, images, videos, message):
    with pytest.raises(SampleError, match=message) as caught:
        check_marks([Turn("user", text)], images, videos)
    assert caught.value.reason == Reason.MARK_COUNT


def test_marks_without_media_are_text():
    check_marks([Turn("user", "<image><image><video>")], 0, 1)
    assert Sample((), videos=("a.mp4",)).marks == ("<video>",)


def test_marks_for_a_question_without_any():
    assert mark_media("why?", 2, 1) == "<image>\n<image>\n<video>\nwhy?"
