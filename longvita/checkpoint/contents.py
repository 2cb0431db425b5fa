"""The content of a training checkpoint, in Megatron's distributed format: weights, optimizer and facts of the run.

The facts are the schedule, the position in the data, random states and the config; a checkpoint of weights alone has
none. All tensors are sharded, so that another layout can load them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.processes import from_all_ranks

FULLY_RESHARDABLE = "fully_reshardable"
"""Megatron's optimizer format that stores each parameter's complete state, for any layout."""


def format_metadata(sharding_type: str) -> dict[str, Any]:
    """Megatron's metadata of a checkpoint whose optimizer state is of this format."""
    return {"distrib_optim_sharding_type": sharding_type, "chained_optim_avoid_prefix": True}


def layout_sizes(groups: ParallelGroups) -> dict[str, int]:
    """The layout that a checkpoint is saved at."""
    return {"tp": groups.tp_size, "pp": groups.pp_size, "cp": groups.cp_size, "dp": groups.dp_size}


def sharded_weights(models: Sequence[LongVITA], platform: Platform) -> dict[str, Any]:
    """Sharded tensors of the weights, by chunk."""
    metadata = format_metadata(platform.optimizer_sharding_type)
    return {f"chunk{index}": model.sharded_state_dict(metadata=metadata) for index, model in enumerate(models)}


def sharded_state(state: TrainingState, sharding_type: str, loading: bool = False) -> dict[str, Any]:
    """Everything to save, or to load into: weights, optimizer and, when saving, the facts of the run."""
    weights = sharded_weights(state.models, state.platform)
    metadata = format_metadata(sharding_type)
    buffers = optimizer_buffers(state)
    positions = [_positions_without_padding(buffer) for buffer in buffers]
    # A MindSpeed before its commit 3df491c3 counts in a tensor on the device, one for each group. megatron-core 0.16.1
    # collects the counts in a set and refuses to store more than one, and two tensors of one value are two there; nor
    # could another platform read them.
    groups = [group for group in state.optimizer.param_groups if "step" in group]
    steps = [int(group["step"]) for group in groups]
    with (
        _replaced([vars(buffer) for buffer in buffers], "param_index_map", positions),
        _replaced(groups, "step", steps),
    ):
        optimizer = state.optimizer.sharded_state_dict(weights, is_loading=loading, metadata=metadata)
    sharded = {"weights": weights, "optimizer": optimizer}
    return sharded if loading else sharded | {"run": _run_facts(state)}


def optimizer_buffers(state: TrainingState) -> list[Any]:
    """Megatron's parameter and gradient buffers of this process, none where it trains nothing."""
    return [buffer for one in state.optimizer.chained_optimizers for buffer in getattr(one, "buffers", [])]


def _run_facts(state: TrainingState) -> dict[str, Any]:
    """Everything that is not a tensor of model or optimizer: identical on every rank, stored once."""
    return {
        "iteration": state.iteration,
        "consumed_sequences": state.consumed_sequences,
        "history": state.history.to_facts(),
        "account": state.sample_accounting.to_facts(),
        "scheduler": state.scheduler.state_dict(),
        "layout": layout_sizes(state.groups),
        "platform": state.platform.name,
        "random_states": from_all_ranks(state.platform.rng_state()),
        "config": dump(state.config),
    }


def _positions_without_padding(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Each parameter's start, end and bucket in its buffer, as the fully reshardable format expects them.

    megatron-core 0.16.1 gathers the optimizer's state bucket by bucket without the padding at their ends, but cuts the
    parameters out of it at positions that count that padding: from the second bucket on (shared embeddings have one of
    their own, models above 40 million parameters have several) each would be stored with its neighbour's values.
    """
    sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
    shifts = [bucket.offset - sum(sizes[:index]) for index, bucket in enumerate(buffer.buckets)]
    return {
        parameter: (start - shifts[bucket], end - shifts[bucket], bucket)
        for parameter, (start, end, bucket) in buffer.param_index_map.items()
    }


@contextlib.contextmanager
def _replaced(holders: Sequence[dict[str, Any]], key: str, values: Sequence[Any]) -> Iterator[None]:
    """Hold one value of each dictionary replaced."""
    originals = [holder[key] for holder in holders]
    try:
        for holder, value in zip(holders, values, strict=True):
            holder[key] = value
        yield
    finally:
        for holder, original in zip(holders, originals, strict=True):
            holder[key] = original
