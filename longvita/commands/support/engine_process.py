"""Before and around the work of a generation command: who speaks to the user, and errors told once.

Imports neither the model nor megatron-core, so that what is refused is refused at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from longvita import platforms
from longvita.checkpoint.errors import CheckpointError, SharedCheckpointError
from longvita.errors import UserError
from longvita.inference.settings import Settings
from longvita.processes import EXIT_INTERRUPTED, EXIT_REFUSED, ignore_known_warnings, is_first_process


def in_process(work: Callable[[Settings, dict[str, Any]], int], payload: dict[str, Any]) -> int:
    """`work(settings, payload)`, the exit code of this process; a UserError is told once and ends with 2."""
    quieten()
    try:
        settings = Settings.from_payload(payload["settings"])
        # Before anything that imports megatron-core: a platform may have to come first.
        platforms.get(settings.config.platform).activate()
        return work(settings, payload)
    except UserError as error:
        alone = isinstance(error, CheckpointError) and not isinstance(error, SharedCheckpointError)
        if alone or is_first_process():
            print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def quieten() -> None:
    """Leaves out what libraries say on every start and no one can act on; before they are imported."""
    ignore_known_warnings()
    from transformers.utils import logging

    # It knows no model type long_vita, which the tokenizer beside the model's config does not need.
    logging.set_verbosity_error()
