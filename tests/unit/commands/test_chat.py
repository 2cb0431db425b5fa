"""A chat's lines, with an engine that needs no model."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from longvita.commands.support.chat_session import HELP, ChatSession, read_lines
from longvita.inference.errors import PromptError
from longvita.inference.limits import LengthError
from tests.tiny import tiny_config


class Parrot:
    """Answers with the words of the last question; a word "stop" is a press of Ctrl-C."""

    def __init__(self) -> None:
        self.config = tiny_config()
        self.cut_off = ""
        self.asked: list[tuple[list[dict[str, str]], list[str], list[str]]] = []
        self.resets = 0

    def encode(self, messages: Sequence[dict[str, str]], images: Sequence[str], videos: Sequence[str]) -> list[str]:
        if "too long" in messages[-1]["content"]:
            raise LengthError("the input is 9 tokens")
        if any("unreadable" in path for path in (*images, *videos)):
            raise PromptError("the file cannot be read")
        self.asked.append((list(messages), list(images), list(videos)))
        return messages[-1]["content"].split()

    def answer(self, prompt: list[str], progress: Callable[[int], None]) -> Iterator[str]:
        progress(len(prompt))
        for word in prompt:
            if word == "stop":
                signal.raise_signal(signal.SIGINT)
            yield f"{word} "
        self.cut_off = "the answer is cut off" if "cut" in prompt else ""

    def reset(self) -> None:
        self.resets += 1


def talk(*lines: str) -> tuple[Parrot, list[bool], str]:
    """The engine, what `take` returned for each line, and the text on the terminal."""
    engine, screen = Parrot(), io.StringIO()
    session: Any = ChatSession(engine, Console(file=screen, soft_wrap=True), None)  # type: ignore[arg-type]
    return engine, [session.take(line) for line in lines], screen.getvalue()


def test_turns_follow_each_other() -> None:
    engine, going_on, screen = talk("one two", "", "three")
    assert going_on == [True, True, True]
    assert engine.asked[1][0] == [
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "three"},
    ]
    assert screen == "one two \nthree \n"


def test_pictures_and_videos_are_shown_with_the_next_question(tmp_path: Path) -> None:
    (tmp_path / "my clip").mkdir()
    for name in ("picture.png", "my clip/0.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    engine, _, _ = talk(f"/image {tmp_path}/picture.png", "one", f"/video {tmp_path}/my clip", "two")
    assert engine.asked[0][1:] == ([f"{tmp_path}/picture.png"], [])
    messages, images, videos = engine.asked[1]
    # The mark that the parrot repeats stands for no picture.
    assert [message["content"] for message in messages] == ["<image>\none", "< image> one ", "<video>\ntwo"]
    assert (images, videos) == ([f"{tmp_path}/picture.png"], [f"{tmp_path}/my clip"])


def test_reset_forgets_and_quit_ends() -> None:
    engine, going_on, _ = talk("one", "/reset", "two", "/quit")
    assert engine.asked[1][0] == [{"role": "user", "content": "two"}]
    assert engine.resets == 1
    assert going_on == [True, True, True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image no.png", "picture no.png does not exist"),
        ("/video", "/video needs a path"),
        ("/sing", "there is no command /sing"),
        ("too long", "the input is 9 tokens"),
        ("a bad \udcff byte", "character 7 of the question is a byte that is no text"),
        ("/image \udcff.png", "character 8 of the question is a byte that is no text"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(line: str, message: str) -> None:
    engine, going_on, screen = talk(line, "one")
    assert f"error: {message}" in screen
    assert going_on == [True, True]
    assert engine.asked[-1][0] == [{"role": "user", "content": "one"}]


def test_ctrl_c_stops_an_answer_and_keeps_its_beginning() -> None:
    before = signal.getsignal(signal.SIGINT)
    engine, going_on, screen = talk("one stop two", "three")
    assert screen.startswith("one stop \n")
    assert engine.asked[1][0][1] == {"role": "assistant", "content": "one stop "}
    assert going_on == [True, True]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_the_chat() -> None:
    class Busy(Parrot):
        """Reads its prompt so long that Ctrl-C is pressed twice."""

        def answer(self, prompt: list[str], progress: Callable[[int], None]) -> Iterator[str]:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            yield "never"

    session: Any = ChatSession(Busy(), Console(file=io.StringIO()), None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        session.take("one")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which is the current one as well, with pictures of several names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("four.png", "my four.png", "unreadable.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("refused", ["/image unreadable.png", "<image> once", "too long"])
def test_a_refused_question_leaves_the_conversation_as_it_was(pictures: Path, refused: str) -> None:
    """A file whose header is intact is found broken, or too long, when the question is asked."""
    lines = ["/image four.png", "one", *([refused, "what?"] if refused.startswith("/") else [refused]), "two"]
    engine, going_on, screen = talk(*lines)
    assert all(going_on) and screen.count("error: ") == 1
    messages, images, _ = engine.asked[-1]
    assert [message["content"] for message in messages] == ["<image>\none", "< image> one ", "two"]
    assert images == ["four.png"]
    assert ("unreadable.png is no longer shown with the next question" in screen) == refused.startswith("/")


def test_drop_removes_what_the_next_question_would_show(pictures: Path) -> None:
    engine, _, screen = talk("/image four.png", "one", "/image my four.png", "/drop", "two")
    assert engine.asked[-1][1] == ["four.png"]
    assert "my four.png is no longer shown" in screen


@pytest.mark.parametrize(
    "typed",
    ["~/my four.png", "'my four.png'", '"my four.png"', r"my\ four.png", "my four.png", "file://{}/my%20four.png"],
)
def test_a_path_may_be_typed_or_pasted_in_several_ways(pictures: Path, typed: str) -> None:
    engine, _, screen = talk(f"/image  {typed.format(pictures)} ", "one")
    assert "error" not in screen
    assert Path(engine.asked[0][1][0]).samefile(pictures / "my four.png")


def test_an_answer_cut_by_a_limit_is_noted_on_stderr(capsys: pytest.CaptureFixture) -> None:
    _, _, screen = talk("one", "cut")
    assert capsys.readouterr().err == "the answer is cut off\n"
    assert "cut off" not in screen


def test_help_lists_every_command() -> None:
    assert all(f"  {command} " in HELP for command in ("/image", "/video", "/drop", "/reset", "/quit"))
    assert "/drop" in talk("/help")[2]


def test_bytes_that_are_no_text_do_not_end_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO(b"one\n\xff\xc3 two\nthree\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data, encoding="utf-8"))
    lines = list(read_lines(Console(file=io.StringIO()), None))
    assert lines == ["one", "\udcff\udcc3 two", "three"]


def test_a_byte_order_mark_is_not_part_of_the_first_line() -> None:
    assert talk("\ufeffone")[0].asked[0][0][0]["content"] == "one"
