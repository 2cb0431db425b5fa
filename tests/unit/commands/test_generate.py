"""`longvita generate` up to the start of its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvita.commands import generate
from longvita.errors import UserError
from longvita.inference.settings import Options


def test_a_question_is_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    path.write_text("What is\nthis?\n")
    assert generate.read_question(str(path)) == "What is\nthis?"
    assert generate.read_question("What is this?") == "What is this?"
    for question, message in ((str(tmp_path / "no.txt"), "cannot be read"), (" ", "empty")):
        with pytest.raises(UserError, match=message):
            generate.read_question(question)


def test_marks_are_added_unless_the_question_has_its_own() -> None:
    assert generate.with_marks("What?", 2, 1) == "<image>\n<image>\n<video>\nWhat?"
    assert generate.with_marks("See <image>: what?", 1, 0) == "See <image>: what?"
    assert generate.with_marks("What is an <image> tag?", 0, 0) == "What is an <image> tag?"


def test_a_refusal_starts_no_process(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> int:
        raise AssertionError("processes were started")

    monkeypatch.setattr("longvita.processes.launch", fail)
    model = str(golden / "model")
    assert generate.generate(model, "What?", [], [], Options(max_seq_len=1_310_721)) == 2
    assert "1310721" in capsys.readouterr().err
    assert generate.generate(model, str(tmp_path / "no.txt"), [], [], Options()) == 2
    assert "no.txt cannot be read" in capsys.readouterr().err
    assert generate.generate(model, "What?", [], [], Options(tokenizer=str(tmp_path))) == 2
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("page.txt", "not the name of an .html"), ("no/page.html", "no folder")])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys, name, message):
    code = generate.generate("no model", "why?", [], [], Options(), show_frames=str(tmp_path / name))
    assert code == 2
    assert message in capsys.readouterr().err
