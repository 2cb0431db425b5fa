"""Before and around the work of a generation command: who speaks to the user, and errors told once.

Imports neither the model nor megatron-core, so that what is refused is refused at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from longvita import launcher, platforms
from longvita.checkpoint.errors import CheckpointError, SharedCheckpointError
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from longvita.errors import UserError
from longvita.inference.settings import OptionError, Settings
from longvita.known_warnings import ignore_known_warnings

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


def is_first_process() -> bool:
    """Whether this process is the one that speaks to the user."""
    place = launcher.current_place()
    return place is None or place.rank == 0


def speaks_for_its_machine() -> bool:
    """Whether errors found before the processes know each other are told by this process."""
    place = launcher.current_place()
    return place is None or place.local_rank == 0


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


def open_tokenizer(folder: str) -> LongVITATokenizer:
    """The tokenizer of a folder. Raises OptionError when there is none that fits."""
    try:
        return load_tokenizer(folder)
    except (ValueError, FileNotFoundError) as error:
        raise OptionError(f"{error}; name the tokenizer's folder with --tokenizer") from error
