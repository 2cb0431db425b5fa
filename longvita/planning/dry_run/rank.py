"""One rank of a run by shape: the model, its optimizer and a training step as they are, on the meta device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.model.build import build_model
from longvita.planning.dry_run.collectives import followed
from longvita.planning.dry_run.meta_platform import MetaPlatform
from longvita.planning.dry_run.micro_batch import heaviest_loads, make_batch
from longvita.planning.dry_run.rank_counts import EACH_MICRO_BATCH, ActivationBytes, Collective, Load, RankDryRun
from longvita.planning.dry_run.shape_mode import ShapeMode
from longvita.training.state import build_state
from longvita.training.step import train_step


def dry_run_rank(config: Config, platform: MetaPlatform, rank: int, world_size: int) -> RankDryRun:
    """Builds rank `rank` of `world_size` and runs a step for each of the two heaviest loads.

    The platform must be active, and this process be in no group yet. Raises whatever the launch would.
    """
    started = time.perf_counter()
    platform.join(rank, world_size)
    groups = platform.build_groups(config)
    try:
        # A parameter that moves to the meta device would lose the marks that Megatron's modules put on it.
        with platform.device:
            models = build_model(config, groups, platform, fresh=False)
        state = build_state(config, groups, platform, models)
        video, text = heaviest_loads(config)
        collectives, first = _step(state, platform, video)
        _, second = _step(state, platform, text)
        return RankDryRun(
            rank=rank,
            stage=groups.pp_rank,
            places={"tp": groups.tp_rank, "cp": groups.cp_rank, "dp": groups.dp_rank, "pp": groups.pp_rank},
            **state_bytes(state),
            activations=(first, second),
            collectives=collectives,
            shapes=checkpoint_shapes(state),
            seconds=time.perf_counter() - started,
        )
    finally:
        groups.destroy()
        dist.destroy_process_group()


def _step(state: TrainingState, platform: MetaPlatform, load: Load) -> tuple[dict[Collective, int], ActivationBytes]:
    """A step of one micro batch; with the interleaved schedule, which takes groups of PP, of two groups if there are so
    many: as many as wait at most for their backward pass.
    """
    config, groups = state.config, state.groups
    interleaved = config.layout.virtual_pipeline > 1
    passes = min(2 * groups.pp_size, state.micro_batches) if interleaved else 1
    batch = make_batch(load, config, groups, platform.device)
    away = platform.offloaded_bytes
    with ShapeMode(groups) as mode, counted_saves(state.models) as saved, followed(mode, state):
        train_step(state, [batch] * passes, passes)
    counts = {
        call: count * state.micro_batches // passes if call.phase in EACH_MICRO_BATCH else count
        for call, count in mode.counts.items()
    }
    activations = ActivationBytes(
        load=load,
        saved=sum(saved.values()) // passes,
        peak=mode.peak,
        offloaded=(platform.offloaded_bytes - away) // passes,
        # The interleaved step has all its micro batches under way at its peak.
        waiting=0 if interleaved else min(groups.pp_size - groups.pp_rank, state.micro_batches) - 1,
    )
    return counts, activations


@contextlib.contextmanager
def counted_saves(models: Sequence[torch.nn.Module]) -> Iterator[dict[int, int]]:
    """Collects the storages that autograd keeps of what runs inside, by their address, with their bytes.

    Weights are left out, and what is kept while layers are computed again in the backward pass.
    """
    own = {id_of(parameter) for model in models for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() == -1 and id_of(tensor) not in own:
            found[id_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def id_of(tensor: Tensor) -> int:
    """What tells a tensor's storage from all others that live."""
    return tensor.untyped_storage()._cdata


def state_bytes(state: TrainingState) -> dict[str, int]:
    """Counts and bytes of a rank's weights, main gradients and optimizer state, after its first step."""
    parameters = [parameter for model in state.models for parameter in model.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = _storages(parameters)
    optimizers = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    held: list[Tensor] = []
    for one in optimizers:
        for group in one.optimizer.param_groups if one.optimizer is not None else []:
            held += group["params"]
        for values in one.optimizer.state.values() if one.optimizer is not None else []:
            held += [value for value in values.values() if isinstance(value, Tensor)]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained": sum(parameter.numel() for parameter in trained),
        "parameter_bytes": sum(weights.values()),
        "gradient_bytes": sum(_storages([parameter.main_grad for parameter in trained]).values()),
        "optimizer_bytes": sum(size for key, size in _storages(held).items() if key not in weights),
    }


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {id_of(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}


def checkpoint_shapes(state: TrainingState) -> dict[str, tuple[int, ...]]:
    """Global shape of each weight of a state's chunks, by its name in a training checkpoint."""
    metadata = {"distrib_optim_sharding_type": state.platform.optimizer_sharding_type}
    shapes: dict[str, tuple[int, ...]] = {}
    for model in state.models:
        sharded = model.sharded_state_dict(metadata=metadata)
        apply_factories(sharded)
        for entry in nested_values(sharded):
            if isinstance(entry, ShardedTensor):
                shapes[entry.key] = tuple(entry.global_shape)
    return shapes
