"""Held-out loss, source by source."""

from __future__ import annotations

import contextlib
import math

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.data.loader import VALIDATION, LoaderRanks, build_loader
from longvita.data.mix.catalog import make_template
from longvita.data.mix.quarantine_limit import build_checked_catalog
from longvita.training.step import evaluate


def check_held_out(config: Config) -> None:
    """Index the held-out sources. Raises DataError for one that cannot be used, before the first training step."""
    for source, dataset in config.data.validation.items():
        build_checked_catalog(config, make_template(config), {source: dataset})


def held_out_losses(state: TrainingState) -> dict[str, float | None]:
    """Mean loss of each source of data.validation over its first training.validation_sequences packed sequences.

    None for a source of which nothing could be read. The sequences are identical each time and at every layout, so that
    losses can be compared. A collective over the whole world.
    """
    training, groups = state.config.training, state.groups
    # All replicas hold training.validation_sequences sequences or more; the loader fills the rest with padding.
    micro_batches = math.ceil(training.validation_sequences / (training.micro_batch_size * groups.dp_size))
    if state.config.layout.virtual_pipeline > 1:
        # The interleaved schedule needs a multiple of the number of stages.
        micro_batches = math.ceil(micro_batches / groups.pp_size) * groups.pp_size
    ranks = LoaderRanks.from_groups(groups)
    losses: dict[str, float | None] = {}
    for source in state.config.data.validation:
        with contextlib.closing(build_loader(state.config, ranks, 0, VALIDATION + source)) as loader:
            figures, _ = evaluate(state, loader, micro_batches, (source,))
        losses[source] = figures.loss if figures.loss_tokens else None
    return losses
