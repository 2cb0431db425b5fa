"""Warnings of the libraries that are true, repeated in every process, and nothing that a user could act on."""

from __future__ import annotations

import warnings

KNOWN_WARNINGS = (
    # megatron-core at import, of what it goes on without
    (UserWarning, ".*(Transformer Engine|Apex).*not installed"),
    # megatron-core 0.16.1 with newer torch
    (FutureWarning, ".*is deprecated. Please use `torch.distributed"),
    (FutureWarning, "`load_state_dict` is deprecated"),
    (FutureWarning, "Please use DTensor instead"),
    (UserWarning, "full scope is deprecated"),
    # transformers, of names in the published configs
    (FutureWarning, "`rope_scaling` is deprecated"),
)


def ignore_known_warnings() -> None:
    """Leaves them out from here on; some are told at import, so before the libraries are imported."""
    for category, message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
