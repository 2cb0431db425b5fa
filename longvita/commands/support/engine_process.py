"""The start of a rank that answers questions, before the model and megatron-core are imported."""

from __future__ import annotations

from typing import Any

from longvita import platforms
from longvita.inference.settings import Settings
from longvita.processes import ignore_known_warnings


def start_engine_rank(payload: dict[str, Any]) -> Settings:
    """The settings in the payload, once the platform is active: a platform may have to come before megatron-core."""
    quiet_libraries()
    settings = Settings.from_payload(payload["settings"])
    platforms.get(settings.config.platform).activate()
    return settings


def quiet_libraries() -> None:
    """Turn off warnings that libraries print at every start and no user can act on; before they are imported."""
    ignore_known_warnings()
    from transformers.utils import logging

    # It knows no model type long_vita, which the tokenizer next to the model's config does not need.
    logging.set_verbosity_error()
