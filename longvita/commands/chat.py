"""`longvita chat`: a conversation in the terminal about pictures and videos, in the ranks of a layout."""

from __future__ import annotations

import signal
from typing import Any

from longvita.commands.support.options import ModelArgument, ModelOptions
from longvita.processes import EXIT_COMPLETE, is_first_process, world_size_of_launcher


def chat(model: ModelArgument, options: ModelOptions) -> int:
    """Talk about pictures and videos in the terminal."""
    from longvita.checkpoint.hf.hub import check_name

    # Before the large libraries are imported, which takes seconds.
    check_name(model)
    from longvita.commands.support.engine_ranks import launch_engines, quiet_libraries

    quiet_libraries()
    from longvita.commands.support.model_options import engine_settings, prompt_encoder

    settings = engine_settings(model, options, world_size_of_launcher())
    prompt_encoder(settings)
    return launch_engines("longvita.commands.chat:chat_rank", settings, options, {})


def chat_rank(payload: dict[str, Any]) -> int:
    """The body of a rank. The first one reads the lines and sends each to the others, which follow its turns."""
    from longvita.commands.support.engine_ranks import start_engine_rank

    settings = start_engine_rank(payload)
    if not is_first_process():
        # The first process answers Ctrl-C; the others end when it ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not earlier: they import megatron-core.
    import torch.distributed as dist
    from rich.console import Console

    from longvita.commands.support.chat_session import ChatSession, read_lines
    from longvita.inference.session import CONTROL_TIMEOUT, open_engine

    with open_engine(settings) as engine:
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if dist.get_world_size() > 1 else None
        console = Console(quiet=not is_first_process(), soft_wrap=True)
        console.print(f"{settings.config.name} is ready. /help lists the commands.", style="dim")
        session = ChatSession(engine, console, control)
        for line in read_lines(console, control):
            if not session.take(line):
                break
    return EXIT_COMPLETE
