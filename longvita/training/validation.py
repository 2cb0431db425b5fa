"""Held-out loss, source by source."""

from __future__ import annotations

import contextlib
import math

from longvita.checkpoint.training_state import TrainingState
from longvita.data.loader import VALIDATION, LoaderRanks, build_loader
from longvita.training.step import evaluate


def held_out_losses(state: TrainingState) -> dict[str, float | None]:
    """Mean loss of each source of data.validation over its first training.validation_sequences packed sequences.

    None for a source of which nothing could be read. The sequences are identical each time and at every layout, so that
    losses can be compared. A collective over the whole world.
    """
    micro_batches = validation_micro_batches(state)
    ranks = LoaderRanks.from_groups(state.groups)
    losses: dict[str, float | None] = {}
    for source in state.config.data.validation:
        with contextlib.closing(build_loader(state.config, ranks, 0, VALIDATION + source)) as loader:
            figures, _ = evaluate(state, loader, micro_batches, (source,))
        losses[source] = figures.loss if figures.loss_tokens else None
    return losses


def validation_micro_batches(state: TrainingState) -> int:
    """Micro batches of this replica, so that all replicas hold training.validation_sequences sequences or more.

    The loader fills the rest with padding.
    """
    training, layout = state.config.training, state.config.layout
    number = math.ceil(training.validation_sequences / (training.micro_batch_size * state.groups.dp_size))
    if layout.virtual_pipeline > 1:
        # The interleaved schedule needs a multiple of the number of stages.
        number = math.ceil(number / state.groups.pp_size) * state.groups.pp_size
    return number
