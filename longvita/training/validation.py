"""Held-out loss, source by source."""

from __future__ import annotations

import math

from longvita.config.schema import Config
from longvita.data.loader import build_loader
from longvita.training.state import TrainingState
from longvita.training.step import evaluate


def held_out_losses(state: TrainingState) -> dict[str, float]:
    """Mean loss of each source of data.validation over its first training.validation_sequences packed sequences.

    The same sequences each time, so that the losses of two evaluations compare. A collective over the whole world.
    """
    micro_batches = validation_micro_batches(state)
    losses = {}
    for source in state.config.data.validation:
        config = source_config(state.config, source)
        loader = build_loader(config, state.groups, 0)
        figures, _ = evaluate(state, loader, micro_batches, (source,))
        losses[source] = figures.loss
    return losses


def source_config(config: Config, source: str) -> Config:
    """The config whose training data is one held-out source."""
    data = config.data.model_copy(update={"dataset": {source: config.data.validation[source]}, "validation": {}})
    return config.model_copy(update={"data": data})


def validation_micro_batches(state: TrainingState) -> int:
    """Micro batches of this replica that hold at least training.validation_sequences sequences over all replicas."""
    training, layout = state.config.training, state.config.layout
    number = math.ceil(training.validation_sequences / (training.micro_batch_size * state.groups.dp_size))
    if layout.virtual_pipeline > 1:
        # The interleaved schedule takes micro batches in groups of the number of stages.
        number = math.ceil(number / state.groups.pp_size) * state.groups.pp_size
    return number
