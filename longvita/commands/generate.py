"""`longvita generate`: refuses what does not fit before any work, then answers in the processes of the layout."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from longvita import processes
from longvita.commands.support.engine_process import quiet_libraries, start_engine_rank
from longvita.commands.support.prefill_progress import prefill_progress
from longvita.config.layout_text import layout_text
from longvita.config.sizes import replica_size
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, mark_media
from longvita.errors import UserError
from longvita.inference.prompt import Prompt
from longvita.inference.prompt_encoder import MediaTiles, PromptEncoder, PromptError
from longvita.inference.settings import Options, Settings, open_tokenizer, resolve
from longvita.platforms import environment
from longvita.processes import EXIT_REFUSED, is_first_on_machine, is_first_process

if TYPE_CHECKING:
    from longvita.inference.engine import Engine
    from longvita.inference.frame_attention import FrameAttention


def generate(
    model: str,
    question: str,
    images: Sequence[str],
    videos: Sequence[str],
    options: Options,
    show_frames: str | None = None,
) -> int:
    """Answers one question on standard output; the exit code, 2 where something is refused.

    Args:
        model: Hugging Face folder or Hub id of a Long-VITA, or a training checkpoint.
        question: text, or the path of a .txt file that holds it.
        images: picture files; without marks in the question they come before it.
        videos: video files or folders of frames, likewise.
        options: see Options.
        show_frames: an .html file to write, with the frames and pictures that the answer attended to.
    """
    quiet_libraries()
    try:
        _check_page(show_frames)
        settings = resolve(model, options, processes.world_size_of_launcher())
        messages = [{"role": "user", "content": with_marks(read_question(question), len(images), len(videos))}]
        PromptEncoder(settings.config, open_tokenizer(settings.tokenizer)).encode(messages, images, videos)
    except UserError as error:
        return refuse(error)
    payload = {
        "settings": settings.payload(),
        "messages": messages,
        "images": list(images),
        "videos": list(videos),
        "show_frames": show_frames,
    }
    variables = environment.defaults(settings.config.platform)
    return processes.launch("longvita.commands.generate:run_generate", payload, process_count(settings), variables)


def _check_page(path: str | None) -> None:
    """Raises PromptError where no page can be written."""
    if path is None:
        return
    page = Path(path).expanduser()
    if page.suffix != ".html" or page.is_dir():
        raise PromptError(f"--show-frames {path} is not the name of an .html file")
    if not (page.parent.is_dir() and os.access(page if page.exists() else page.parent, os.W_OK)):
        raise PromptError(f"--show-frames {path}: there is no folder {page.parent} that it can be written to")


def refuse(error: UserError) -> int:
    """Tells what every process found before it started to work; the exit code."""
    if is_first_on_machine():
        print(f"error: {error}", file=sys.stderr)
    return EXIT_REFUSED


def process_count(settings: Settings) -> int:
    """Processes of the layout; where it is our choice, it is told."""
    count = replica_size(settings.config)
    if settings.chosen_layout and count > 1 and is_first_process():
        text = f"layout: {layout_text(settings.config.layout)} over {count} processes"
        print(f"{text} (--layout chooses another)", file=sys.stderr)
    return count


def read_question(question: str) -> str:
    """The question itself, or what the .txt file of that name holds. Raises PromptError."""
    if question.endswith(".txt") and "\n" not in question:
        try:
            question = Path(question).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"the question's file {question} cannot be read: {error}") from error
    if not question.strip():
        raise PromptError("the question is empty")
    return question


def with_marks(question: str, images: int, videos: int) -> str:
    """The question with a mark for each picture and video before it, unless it says itself where they stand."""
    if (IMAGE_MARK in question and images) or (VIDEO_MARK in question and videos):
        return question
    return mark_media(question, images, videos)


def run_generate(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    settings = start_engine_rank(payload)
    from longvita.inference.frame_attention import FrameAttention  # here: megatron-core's import takes seconds
    from longvita.inference.session import open_engine
    from longvita.processes import raise_on_all_ranks

    with open_engine(settings) as engine:
        prompt = raise_on_all_ranks(lambda: engine.encode(payload["messages"], payload["images"], payload["videos"]))
        observer = FrameAttention() if payload["show_frames"] else None
        answer = ""
        with prefill_progress(len(prompt), is_first_process()) as progress:
            for piece in engine.answer(prompt, progress=progress, observer=observer):
                answer += piece
                if is_first_process():
                    print(piece, end="", flush=True)
        if is_first_process():
            print()
        if observer is not None:
            _show_frames(
                Path(payload["show_frames"]).expanduser(), engine, prompt, answer, payload["messages"], observer
            )
    return 0


def _show_frames(
    path: Path, engine: Engine, prompt: Prompt, answer: str, messages: Sequence[dict], observer: FrameAttention
) -> None:
    from longvita.commands.support.frame_page import write_attended

    shares = engine.attended(prompt, observer)
    if is_first_process():
        write_attended(path, messages[-1]["content"], answer, shares, cast(MediaTiles, prompt.tiles))
        print(f"{path} shows what the answer attended to", file=sys.stderr)
