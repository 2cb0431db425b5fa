"""`longvita generate` up to the start of its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvita.commands import generate
from longvita.commands.support.options import ModelOptions
from longvita.commands.support.question import read_question, with_marks
from longvita.errors import UserError


def test_a_question_is_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    for content in (b"What is\nthis?\n", b"\xef\xbb\xbfWhat is\nthis?\n"):
        path.write_bytes(content)
        assert read_question(str(path)) == "What is\nthis?"
    assert read_question(path.as_uri()) == "What is\nthis?"
    for question in ("What is this?", "What does it say about no.txt", "Why?\nno.txt", "long " * 1000 + "no.txt"):
        assert read_question(question) == question
    assert read_question("\ufeffWhat is this?") == "What is this?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Why?".encode("utf-16"), "cannot be read: .*it is UTF-16, not UTF-8; fix: iconv"),
        (b"Wh\xffy?", "is not UTF-8"),
        (b"\xef\xbb\xbf \n", "the question is empty"),
        (None, "does not exist"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "question.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_question(str(path))


@pytest.mark.parametrize(("question", "message"), [(" ", "empty"), ("W\udcffy?", "character 2 of the question")])
def test_text_that_is_no_question_is_refused(question: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_question(question)


def test_marks_are_added_unless_the_question_has_its_own() -> None:
    assert with_marks("What?", 2, 1) == "<image>\n<image>\n<video>\nWhat?"
    assert with_marks("See <image>: what?", 1, 0) == "See <image>: what?"
    assert with_marks("What is an <image> tag?", 0, 0) == "What is an <image> tag?"


def test_a_refusal_starts_no_process(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise AssertionError("processes were started")

    monkeypatch.setattr("longvita.commands.support.engine_ranks.launch", fail)
    model = str(golden / "model")
    with pytest.raises(UserError, match="1310721"):
        generate.generate(model, "What?", options=ModelOptions(max_seq_len=1_310_721))
    with pytest.raises(UserError, match="no.txt does not exist"):
        generate.generate(model, str(tmp_path / "no.txt"), options=ModelOptions())
    with pytest.raises(UserError, match="--tokenizer"):
        generate.generate(model, "What?", options=ModelOptions(tokenizer=str(tmp_path)))


@pytest.mark.parametrize(("name", "message"), [("page.txt", "not the name of an .html"), ("no/page.html", "no folder")])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        generate.generate("no model", "why?", show_frames=str(tmp_path / name), options=ModelOptions())
