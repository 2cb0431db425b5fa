"""`longvita chat`: a conversation in the terminal about pictures and videos, on all processes of a layout.

The first process reads the lines and sends each to the others, so that all of them take the same turns.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from rich.console import Console

from longvita import processes
from longvita.commands.generate import process_count, refuse
from longvita.commands.support.conversation import Conversation
from longvita.commands.support.engine_process import quiet_libraries, start_engine_rank
from longvita.commands.support.prefill_progress import prefill_progress
from longvita.errors import UserError
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.settings import Options, open_tokenizer, resolve
from longvita.platforms import environment
from longvita.processes import is_first_process

if TYPE_CHECKING:
    from longvita.inference.engine import Engine

HELP = """Type a question. A line that begins with / is a command:
  /image PATH   show a picture with the next question
  /video PATH   show a video, or a folder of frames, with the next question
  /reset        begin anew
  /quit         end (so does the end of the input)"""


def chat(model: str, options: Options) -> int:
    """A conversation with a model; the exit code, 2 where something is refused. Arguments as those of `generate`."""
    quiet_libraries()
    try:
        settings = resolve(model, options, processes.world_size_of_launcher())
        PromptEncoder(settings.config, open_tokenizer(settings.tokenizer))
    except UserError as error:
        return refuse(error)
    payload = {"settings": settings.payload()}
    variables = environment.defaults(settings.config.platform)
    return processes.launch("longvita.commands.chat:run_chat", payload, process_count(settings), variables)


def run_chat(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    settings = start_engine_rank(payload)
    if not is_first_process():
        # Ctrl-C is the first process's to answer; its end is the others' end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from longvita.inference.session import CONTROL_TIMEOUT, open_engine  # here: megatron-core's import takes seconds

    with open_engine(settings) as engine:
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if dist.get_world_size() > 1 else None
        console = Console(quiet=not is_first_process(), soft_wrap=True)
        console.print(f"{settings.config.name} is ready. /help lists the commands.", style="dim")
        session = ChatSession(engine, console, control)
        for line in _lines(console, control):
            if not session.take(line):
                break
    return 0


def _lines(console: Console, control: dist.ProcessGroup | None) -> Iterator[str]:
    """The lines that the first process reads, on every process, until the input ends."""
    while True:
        line = [_read(console) if is_first_process() else None]
        if control is not None:
            dist.broadcast_object_list(line, src=0, group=control)
        if line[0] is None:
            return
        yield line[0]


def _read(console: Console) -> str | None:
    """The next line without its end; None at the end of the input or on Ctrl-C."""
    try:
        return console.input("[bold green]> [/]") if sys.stdin.isatty() else input()
    except (EOFError, KeyboardInterrupt):
        return None


class ChatSession:
    """Takes line after line: commands change the conversation, questions are answered as their text comes."""

    def __init__(self, engine: Engine, console: Console, control: dist.ProcessGroup | None):
        self.engine, self.console, self.control = engine, console, control
        self.conversation = Conversation(engine.config.data.max_fps)

    def take(self, line: str) -> bool:
        """Does what a line says; False when it ends the chat. What cannot be done is said, and the chat goes on."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        try:
            if command.startswith("/"):
                self._command(command, rest.strip())
            elif command:
                self._ask(line.strip())
        except UserError as error:
            self._say(f"error: {error}", "red")
        return True

    def _command(self, command: str, path: str) -> None:
        conversation = self.conversation
        show = {"/image": conversation.show_picture, "/video": conversation.show_video}.get(command)
        if show is not None:
            if not path:
                raise UserError(f"{command} needs a path")
            self._everywhere(lambda: show(path))
            self._say(f"{path} is shown with the next question", "dim")
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
        prompt = self._everywhere(lambda: self.engine.encode(messages, conversation.images, conversation.videos))
        answer = ""
        with prefill_progress(len(prompt), visible=is_first_process()) as progress, self._stoppable() as stopped:
            for piece in self.engine.answer(prompt, progress=progress):
                answer += piece
                self.console.print(piece, end="", markup=False, highlight=False)
                if stopped():
                    break
        self.console.print()
        if answer.strip():
            conversation.keep(messages, answer)
        else:
            self._say("(no answer; the question is forgotten)", "dim")

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[Callable[[], bool]]:
        """A function that tells, alike on every process, whether Ctrl-C has been pressed in the first one.

        Pressed again before anyone asked, Ctrl-C ends the chat.
        """
        pressed = [False]

        def press(number: int, frame: Any) -> None:
            if pressed[0]:
                raise KeyboardInterrupt
            pressed[0] = True

        def stopped() -> bool:
            answer = list(pressed)
            if self.control is not None:
                dist.broadcast_object_list(answer, src=0, group=self.control)
            return answer[0]

        if not is_first_process():
            yield stopped
            return
        previous = signal.signal(signal.SIGINT, press)
        try:
            yield stopped
        finally:
            signal.signal(signal.SIGINT, previous)

    def _everywhere(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or on every process the UserError that one of them met."""
        from longvita.processes import raise_on_all_ranks

        return raise_on_all_ranks(work, self.control)

    def _say(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)
