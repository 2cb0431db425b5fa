"""`longvita generate`: refuse what does not fit before any work, then answer in the ranks of the layout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from longvita.commands.support.options import ModelArgument, ModelOptions
from longvita.processes import EXIT_COMPLETE, is_first_process, raise_on_all_ranks, world_size_of_launcher


def generate(
    model: ModelArgument,
    question: Annotated[str, typer.Option(help="The question, or a .txt file that holds it.", show_default=False)],
    image: Annotated[list[str] | None, typer.Option(help="Picture; may be repeated.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Video file or folder of frames; may be repeated.")] = None,
    show_frames: Annotated[
        str | None, typer.Option(help="Write this .html page: the frames that the answer attended to.")
    ] = None,
    *,
    options: ModelOptions,
) -> int:
    """Answer one question about pictures and videos, printed as it comes."""
    from longvita.checkpoint.hf.hub import check_name
    from longvita.commands.support.frame_page import check_page
    from longvita.commands.support.question import media_paths, read_question, with_marks

    # Before the large libraries are imported, which takes seconds.
    if show_frames is not None:
        check_page(show_frames)
    check_name(model)
    images, videos = media_paths(image, "picture"), media_paths(video, "video")
    text = with_marks(read_question(question), len(images), len(videos))
    from longvita.commands.support.engine_ranks import launch_engines, quiet_libraries

    quiet_libraries()
    from longvita.commands.support.model_options import engine_settings, prompt_encoder

    settings = engine_settings(model, options, world_size_of_launcher())
    messages = [{"role": "user", "content": text}]
    prompt_encoder(settings).encode(messages, images, videos)
    payload = {"messages": messages, "images": images, "videos": videos, "show_frames": show_frames}
    return launch_engines("longvita.commands.generate:generate_rank", settings, options, payload)


def generate_rank(payload: dict[str, Any]) -> int:
    """The body of a rank."""
    from longvita.commands.support.engine_ranks import start_engine_rank
    from longvita.commands.support.prefill_progress import prefill_progress

    settings = start_engine_rank(payload)
    # Not earlier: they import megatron-core.
    from longvita.commands.support.frame_page import write_attended
    from longvita.inference.frame_attention import FrameAttention
    from longvita.inference.prompt_encoder import MediaTiles
    from longvita.inference.session import open_engine

    messages, page = payload["messages"], payload["show_frames"]
    with open_engine(settings) as engine:
        prompt = raise_on_all_ranks(lambda: engine.encode(messages, payload["images"], payload["videos"]))
        observer = FrameAttention() if page else None
        answer = ""
        with prefill_progress(len(prompt), is_first_process()) as progress:
            for piece in engine.answer(prompt, progress=progress, observer=observer):
                answer += piece
                if is_first_process():
                    print(piece, end="", flush=True)
        if is_first_process():
            print()
            if engine.cut_off:
                print(engine.cut_off, file=sys.stderr)
        if observer is not None:
            attention = engine.attended(prompt, observer)
            if is_first_process():
                path = Path(page).expanduser()
                write_attended(path, messages[-1]["content"], answer, attention, cast(MediaTiles, prompt.tiles))
                print(f"{path} shows what the answer attended to", file=sys.stderr)
    return EXIT_COMPLETE
