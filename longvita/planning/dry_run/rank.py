"""One rank of a run by shape: the unchanged model, optimizer and training step, on the meta device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.model.build import build_model
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.planning.dry_run.collectives import storage_key, track_phases
from longvita.planning.dry_run.meta_platform import MetaPlatform
from longvita.planning.dry_run.micro_batch import make_batch
from longvita.planning.dry_run.rank_counts import MICRO_BATCH_PHASES, ActivationBytes, Collective, RankDryRun
from longvita.planning.dry_run.shape_mode import ShapeMode
from longvita.training.state import build_state
from longvita.training.step import train_step


def dry_run_rank(config: Config, platform: MetaPlatform, rank: int, world_size: int) -> RankDryRun:
    """Build rank `rank` of `world_size` and run a training step for each of the two worst contents.

    The platform must be active, and this process in no process group yet. Raises whatever the launch would.
    """
    started = time.perf_counter()
    platform.join(rank, world_size)
    groups = platform.build_groups(config)
    try:
        # Moving a parameter to the meta device would lose the attributes that Megatron's modules set on it.
        with platform.device:
            models = build_model(config, groups, platform, fresh=False)
        state = build_state(config, groups, platform, models)
        video, text = worst_contents(config)
        collectives, first = _step(state, platform, video)
        _, second = _step(state, platform, text)
        return RankDryRun(
            rank=rank,
            stage=groups.pp_rank,
            places={"tp": groups.tp_rank, "cp": groups.cp_rank, "dp": groups.dp_rank, "pp": groups.pp_rank},
            **allocated_state(state),
            activations=(first, second),
            collectives=collectives,
            shapes=checkpoint_shapes(state),
            seconds=time.perf_counter() - started,
        )
    finally:
        groups.destroy()
        dist.destroy_process_group()


def _step(
    state: TrainingState, platform: MetaPlatform, contents: BatchContents
) -> tuple[dict[Collective, int], ActivationBytes]:
    """Run a step and count its collectives and activations.

    The step has one micro batch. With the interleaved schedule, which needs groups of PP micro batches, it has two
    groups if the run has so many: the highest number that waits for its backward pass.
    """
    config, groups = state.config, state.groups
    interleaved = config.layout.virtual_pipeline > 1
    micro_batches = min(2 * groups.pp_size, state.micro_batches) if interleaved else 1
    batch = make_batch(contents, config, groups, platform.device)
    # Tensors of an earlier step do not count, so each step allocates the buffer for gathered rows itself.
    parallel_state.get_global_memory_buffer().buffer.clear()
    offloaded_before = platform.offloaded_bytes
    with ShapeMode(groups) as mode, count_saved(state.models) as saved, track_phases(mode, state):
        train_step(state, [batch] * micro_batches, micro_batches)
    collectives = {
        call: count * state.micro_batches // micro_batches if call.phase in MICRO_BATCH_PHASES else count
        for call, count in mode.counts.items()
    }
    activations = ActivationBytes(
        contents=contents,
        saved=sum(saved.values()) // micro_batches,
        peak=mode.peak,
        offloaded=(platform.offloaded_bytes - offloaded_before) // micro_batches,
        # The peak of the interleaved step includes all micro batches that wait.
        waiting=0 if interleaved else min(groups.pp_size - groups.pp_rank, state.micro_batches) - 1,
    )
    return collectives, activations


@contextlib.contextmanager
def count_saved(models: Sequence[torch.nn.Module]) -> Iterator[dict[int, int]]:
    """Yield the bytes of the storages that autograd saves inside, by the key of the storage.

    Weights are left out, as is what is saved while layers are recomputed in the backward pass.
    """
    weights = {storage_key(parameter) for model in models for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() == -1 and storage_key(tensor) not in weights:
            found[storage_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def allocated_state(state: TrainingState) -> dict[str, int]:
    """Count the parameters of a rank, and the bytes of its weights, main gradients and optimizer state after a step."""
    parameters = [parameter for model in state.models for parameter in model.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = _storages(parameters)
    optimizers = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    held: list[Tensor] = []
    for one in optimizers:
        if one.optimizer is not None:
            for group in one.optimizer.param_groups:
                held += group["params"]
            for values in one.optimizer.state.values():
                held += [value for value in values.values() if isinstance(value, Tensor)]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained": sum(parameter.numel() for parameter in trained),
        "parameter_bytes": sum(weights.values()),
        "gradient_bytes": sum(_storages(parameter.main_grad for parameter in trained).values()),
        "optimizer_bytes": sum(size for key, size in _storages(held).items() if key not in weights),
    }


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}


def checkpoint_shapes(state: TrainingState) -> dict[str, tuple[int, ...]]:
    """Return the global shape of each weight of a state's chunks, by its name in a training checkpoint."""
    metadata = {"distrib_optim_sharding_type": state.platform.optimizer_sharding_type}
    shapes: dict[str, tuple[int, ...]] = {}
    for model in state.models:
        sharded = model.sharded_state_dict(metadata=metadata)
        apply_factories(sharded)
        for entry in nested_values(sharded):
            if isinstance(entry, ShardedTensor):
                shapes[entry.key] = tuple(entry.global_shape)
    return shapes
