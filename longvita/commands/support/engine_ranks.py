"""The start of the ranks that answer questions: their number, and what each does before it imports megatron-core."""

from __future__ import annotations

import sys
from typing import Any

from longvita import platforms
from longvita.commands.support.options import EngineOptions
from longvita.config.layout_text import layout_text
from longvita.config.sizes import replica_size
from longvita.inference.settings import EngineSettings
from longvita.platforms import environment
from longvita.processes import ignore_known_warnings, is_first_process, launch


def launch_engines(
    target: str, settings: EngineSettings, options: EngineOptions, payload: dict[str, Any], replicas: int = 1
) -> int:
    """Run `target` ("module:function") in the ranks of one or more replicas; the exit code.

    The target gets `payload` and the settings, which `start_engine_rank` reads. Prints a layout that the user did not
    choose.
    """
    count = replica_size(settings.config)
    if not options.names_layout and count > 1 and is_first_process():
        text = f"layout: {layout_text(settings.config.layout)} over {count} processes"
        print(f"{text} (--layout chooses another)", file=sys.stderr)
    variables = environment.defaults(settings.config.platform)
    return launch(target, payload | {"settings": settings.payload()}, count * replicas, variables)


def start_engine_rank(payload: dict[str, Any]) -> EngineSettings:
    """The settings in the payload, once the platform is active: a platform may have to come before megatron-core."""
    quiet_libraries()
    settings = EngineSettings.from_payload(payload["settings"])
    platforms.get(settings.config.platform).activate()
    return settings


def quiet_libraries() -> None:
    """Turn off warnings that libraries print at every start and no user can act on; before they are imported."""
    ignore_known_warnings()
    from transformers.utils import logging

    # It knows no model type long_vita, which the tokenizer next to the model's config does not need.
    logging.set_verbosity_error()
