"""The lines of a chat: commands change the conversation, questions are answered as their text comes."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from rich.console import Console

from longvita.commands.support.conversation import Conversation
from longvita.commands.support.prefill_progress import prefill_progress
from longvita.commands.support.question import plain_text
from longvita.errors import UserError
from longvita.processes import is_first_process, raise_on_all_ranks

if TYPE_CHECKING:
    from longvita.inference.engine import Engine

HELP = """Type a question. A line that begins with / is a command:
  /image PATH   show a picture with the next question
  /video PATH   show a video, or a folder of frames, with the next question
  /drop         do not show the pictures and videos that are shown with the next question
  /reset        start a new conversation
  /quit         end (so does the end of the input)"""


def read_lines(console: Console, control: dist.ProcessGroup | None) -> Iterator[str]:
    """The lines that the first process reads, broadcast to every process, until the input ends.

    A byte that is no text becomes a lone surrogate, which `plain_text` refuses.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while (line := _from_first(_read(console) if is_first_process() else None, control)) is not None:
        yield line


def _from_first(value: Any, control: dist.ProcessGroup | None) -> Any:
    """The first process's value, on every process."""
    values = [value]
    if control is not None:
        dist.broadcast_object_list(values, src=0, group=control)
    return values[0]


def _read(console: Console) -> str | None:
    """The next line without its end; None at the end of the input or on Ctrl-C."""
    try:
        return console.input("[bold green]> [/]") if sys.stdin.isatty() else input()
    except (EOFError, KeyboardInterrupt):
        return None


class ChatSession:
    """A conversation, one line after the other."""

    def __init__(self, engine: Engine, console: Console, control: dist.ProcessGroup | None):
        self.engine, self.console, self.control = engine, console, control
        self.conversation = Conversation(engine.config.data.max_fps)

    def take(self, line: str) -> bool:
        """Run a command or answer a question; False when the line ends the chat. Errors are printed."""
        try:
            line = plain_text(line).strip()
            command, rest = [*line.split(maxsplit=1), "", ""][:2]
            if command in ("/quit", "/exit"):
                return False
            if command.startswith("/"):
                self._command(command, rest)
            elif command:
                self._ask(line)
        except UserError as error:
            self._refuse(error)
        return True

    def _command(self, command: str, path: str) -> None:
        conversation = self.conversation
        show = {"/image": conversation.show_picture, "/video": conversation.show_video}.get(command)
        if show is not None:
            if not path:
                raise UserError(f"{command} needs a path")
            shown = raise_on_all_ranks(lambda: show(path), self.control)
            self._say(f"{shown} is shown with the next question", "dim")
        elif command == "/drop":
            self._drop()
        elif command == "/reset":
            conversation.reset()
            self.engine.reset()
            self._say("a new conversation", "dim")
        elif command == "/help":
            self._say(HELP, "dim")
        else:
            raise UserError(f"there is no command {command}; /help lists them")

    def _ask(self, question: str) -> None:
        conversation = self.conversation
        messages = conversation.with_question(question)
        try:
            answer = self._answer(messages)
        except UserError as error:
            self._refuse(error)
            # With a picture or video that cannot be used, every later question would be refused as well.
            self._drop()
            return
        if answer.strip():
            conversation.keep(messages, answer)
        else:
            self._say("(no answer; the question is forgotten)", "dim")

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """Print the answer as its text comes, and return it."""
        images, videos = self.conversation.images, self.conversation.videos
        prompt = raise_on_all_ranks(lambda: self.engine.encode(messages, images, videos), self.control)
        answer, interrupted = "", False
        with prefill_progress(len(prompt), visible=is_first_process()) as progress, self._stoppable() as stopped:
            for piece in self.engine.answer(prompt, progress=progress):
                answer += piece
                self.console.print(piece, end="", markup=False, highlight=False)
                if interrupted := stopped():
                    break
        self.console.print()
        if self.engine.cut_off and not interrupted and is_first_process():
            print(self.engine.cut_off, file=sys.stderr)
        return answer

    def _drop(self) -> None:
        for path in self.conversation.drop():
            self._say(f"{path} is no longer shown with the next question", "dim")

    def _refuse(self, error: UserError) -> None:
        self._say(f"error: {error}", "red")

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[Callable[[], bool]]:
        """A function that returns on every process whether Ctrl-C has been pressed in the first one.

        Pressed a second time before the function is called, Ctrl-C ends the chat.
        """
        pressed = [False]

        def press(number: int, frame: Any) -> None:
            if pressed[0]:
                raise KeyboardInterrupt
            pressed[0] = True

        def stopped() -> bool:
            return _from_first(pressed[0], self.control)

        if not is_first_process():
            yield stopped
            return
        previous = signal.signal(signal.SIGINT, press)
        try:
            yield stopped
        finally:
            signal.signal(signal.SIGINT, previous)

    def _say(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)
