"""Compare a model at one layout with golden vectors: image features, logits, loss, gradients, greedy tokens.

Everything runs as in training and generation: pipeline schedule, sharded tiles, reduced gradients, chunked prefill and
KV cache.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from longvita.checkpoint.hf.gather_tensors import Gatherer
from longvita.checkpoint.hf.tensor_map import Mapper, hf_tensors
from longvita.checkpoint.hf.tensor_names import LONG_VITA
from longvita.checkpoint.sources import load_weights
from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.data.batch import LocalBatch
from longvita.inference.engine import Engine
from longvita.model.build import build_model
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import schedule_length
from longvita.platforms.base import Platform
from longvita.processes import from_all_ranks
from longvita.training.state import build_state
from longvita.training.step import forward_backward
from longvita.verify.golden import Golden

TOLERANCES = {"image features": 2e-4, "logits": 2e-4, "loss": 1e-5, "gradients": 1e-3, "greedy tokens": 0.0}
"""Largest differences allowed: absolute; for gradients relative to the tensor's largest value; tokens must be equal."""
_ABSENT = "not among the golden vectors"


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    difference: float | None
    """Largest difference; None when nothing was compared."""
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a check without a comparison does not fail."""
        return self.difference is None or self.difference <= self.tolerance


def compare(source: str, golden: Golden, config: Config, groups: ParallelGroups, platform: Platform) -> list[Check]:
    """Make all checks; the list is identical on every rank. A collective; the world is one replica of the layout."""
    models = build_model(config, groups, platform, fresh=False)
    load_weights(models, source, groups, platform)
    unit = config.layout.tensor_parallel if config.layout.sequence_parallel else 1
    batch = golden.batch(groups, unit).to(platform.device)
    checks = [_features(models, golden, batch.tiles, groups), _logits(models, golden, batch, groups)]
    state = build_state(config, groups, platform, models=models)
    micro_batches = state.micro_batches
    losses, _ = forward_backward(state, [batch] * micro_batches, micro_batches, ())
    gather_gradients(state)
    loss = None if golden.loss is None else abs(losses.loss - golden.loss)
    checks.append(Check("loss", loss, TOLERANCES["loss"], _ABSENT if loss is None else ""))
    return [*checks, *_gradients(state, golden), _tokens(state, golden)]


def gather_gradients(state: TrainingState) -> None:
    """Fill each rank's gradient buffers with the shards that the distributed optimizer left on the others."""
    group = state.groups.dp_cp
    if group.size() == 1:
        return
    for chunk in state.chunks:
        for buffer in chunk.buffers:
            for bucket in buffer.buckets:
                shard = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                dist.all_gather_into_tensor(bucket.grad_data, shard, group=group)


def _features(models: Sequence[LongVITA], golden: Golden, tiles: Tensor, groups: ParallelGroups) -> Check:
    """Image features; each rank of the first stage encodes its own tiles, as in training."""
    name = "image features"
    if golden.features is None:
        return Check(name, None, TOLERANCES[name], _ABSENT)
    own = None
    if groups.is_first_stage:
        with torch.no_grad():
            own = models[0].encode_tiles(tiles).cpu()
    found = torch.cat([x for x in from_all_ranks(own) if x is not None])
    return Check(name, _largest(found, golden.features), TOLERANCES[name])


def _logits(models: Sequence[LongVITA], golden: Golden, batch: LocalBatch, groups: ParallelGroups) -> Check:
    if golden.logits is None:
        return Check("logits", None, TOLERANCES["logits"], _ABSENT)
    found = pipeline_logits(models, batch, groups)
    difference = None if found is None else _largest(found[: len(golden.logits)].cpu(), golden.logits)
    differences = [x for x in from_all_ranks(difference) if x is not None]
    return Check("logits", _worst(differences), TOLERANCES["logits"])


@torch.no_grad()
def pipeline_logits(models: Sequence[LongVITA], batch: LocalBatch, groups: ParallelGroups) -> Tensor | None:
    """Logits [t, v] of a micro batch through the pipeline: fp32 on every TP rank of the last stage, None elsewhere."""

    def forward(stream: Any, model: LongVITA) -> tuple[Any, Callable]:
        return model.logits(next(stream)), lambda output, non_loss_data: output

    for model in models:
        model.eval()
    micro_batches = groups.pp_size if len(models) > 1 else 1
    outputs = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter([batch] * micro_batches) for _ in models],
        model=list(models),
        num_microbatches=micro_batches,
        seq_length=schedule_length(batch.input_ids.shape[1], groups, models[0].config.sequence_parallel),
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    for model in models:
        model.train()
    return outputs[0] if groups.is_last_stage else None


def _gradients(state: TrainingState, golden: Golden) -> list[Check]:
    """The optimizer's gradients, gathered from all ranks under the published names."""
    tolerance = TOLERANCES["gradients"]
    if not golden.gradients:
        return [Check("gradients", None, tolerance, _ABSENT)]
    model, groups = state.config.model, state.groups
    mapper = Mapper(model, LONG_VITA, groups.tp_rank, groups.tp_size)
    # DDP keeps the reduced gradient there, in fp32.
    gatherer = Gatherer(state.models, mapper, groups, value=operator.attrgetter("main_grad"))
    known = {tensor.name: tensor for tensor in hf_tensors(model, LONG_VITA)}
    checks = []
    for name, wanted in sorted(golden.gradients.items()):
        if name not in known:
            checks.append(Check(f"grad {name}", float("inf"), tolerance, "the model has no such tensor"))
            continue
        found = gatherer.tensor(known[name])
        relative = None if found is None else _largest(found, wanted) / max(float(wanted.abs().max()), 1e-30)
        box = [relative]
        dist.broadcast_object_list(box)
        checks.append(Check(f"grad {name}", box[0], tolerance, "of the largest"))
    return checks


def _tokens(state: TrainingState, golden: Golden) -> Check:
    """Greedy tokens from chunked prefill and KV cache; the difference is the number of tokens that differ."""
    name, wanted = "greedy tokens", golden.greedy_tokens
    if wanted is None or golden.rows != 1:
        return Check(name, None, 0.0, _ABSENT)
    if len(state.models) > 1:
        return Check(name, None, 0.0, "not run: generation has no interleaved schedule")
    engine = Engine(state.models, state.config, None, state.groups, state.platform)
    found = engine.generate_tokens(golden.input_ids, golden.images, golden.tile_starts, len(wanted))
    different = sum(a != b for a, b in zip(found, wanted, strict=False)) + abs(len(wanted) - len(found))
    return Check(name, float(different), 0.0, f"{len(wanted)} tokens" if not different else f"{found} for {wanted}")


def _largest(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return _worst([float((found.double() - wanted.double()).abs().max())] if found.numel() else [0.0])


def _worst(values: Any) -> float:
    """The largest value; NaN counts as infinite, so that it cannot pass."""
    return max((float("inf") if value != value else value for value in values), default=float("inf"))
