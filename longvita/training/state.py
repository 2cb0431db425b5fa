"""Build the state that a training stage starts from: wrapped model chunks, optimizer and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from longvita.checkpoint.contents import FULLY_RESHARDABLE
from longvita.checkpoint.hf.read_weights import read_weights
from longvita.checkpoint.load import load_state
from longvita.checkpoint.sources import load_weights
from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.model.build import build_model
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.training.optimizer import build_optimizer, build_scheduler

BUCKET_SIZE = 40_000_000
"""Elements at which a gradient bucket is closed, where checkpoints store the buckets as they are. Megatron's own size
is the same up to 40 replicas and then grows with their number, so that no other number of replicas could resume."""


def start_or_resume(
    config: Config, groups: ParallelGroups, platform: Platform, checkpoint: Path | None
) -> TrainingState:
    """The state from a checkpoint of the run, or its first state when `checkpoint` is None. A collective."""
    models = build_model(config, groups, platform, fresh=checkpoint is None)
    if checkpoint is None:
        read_initial_weights(models, config, groups, platform)
    state = build_state(config, groups, platform, models)
    if checkpoint is not None:
        load_state(state, checkpoint)
    return state


def read_initial_weights(models: list[LongVITA], config: Config, groups: ParallelGroups, platform: Platform) -> None:
    """Fill initialised chunks from the weights that config.checkpoint names; other parts stay as initialised.

    First `initial` (a checkpoint of ours, or a Hugging Face folder or Hub id), then `initial_language` and
    `initial_vision`, which override it. A collective. Raises CheckpointError.
    """
    sources = config.checkpoint
    if sources.initial is not None:
        load_weights(models, sources.initial, groups, platform)
    if sources.initial_language is not None:
        read_weights(models, sources.initial_language, groups, parts=("language",))
    if sources.initial_vision is not None:
        read_weights(models, sources.initial_vision, groups, parts=("vision",))


def build_state(
    config: Config, groups: ParallelGroups, platform: Platform, models: list[LongVITA] | None = None
) -> TrainingState:
    """Build a state before its first step, from `models` or from newly built ones.

    The optimizer copies bf16 weights to fp32 here: call `optimizer.reload_model_params()` if weights change later.
    """
    models = models or build_model(config, groups, platform)
    # Megatron's optimizer needs all chunks of a stage to reduce gradients the same way.
    overlap = config.training.overlap_grad_reduce and not any(_has_varying_reports(model, config) for model in models)
    chunks = [_wrap(model, config, platform, index, overlap) for index, model in enumerate(models)]
    optimizer = build_optimizer(chunks, config)
    micro_batches = config.training.global_batch_size // (config.training.micro_batch_size * groups.dp_size)
    scheduler = build_scheduler(optimizer, config)
    return TrainingState(config, groups, platform, models, chunks, optimizer, scheduler, micro_batches)


def _wrap(model: LongVITA, config: Config, platform: Platform, index: int, overlap: bool) -> DistributedDataParallel:
    settings: Any = model.config
    by_name = platform.optimizer_sharding_type == FULLY_RESHARDABLE
    buckets: dict[str, Any] = {} if by_name else {"bucket_size": BUCKET_SIZE}
    module = Float16Module(settings, model) if config.training.precision == "bf16" else model
    return DistributedDataParallel(
        settings,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, use_distributed_optimizer=True, **buckets
        ),
        module,
        # Chunks after a stage's first one finish their backward pass early: nothing to overlap with smaller buckets.
        disable_bucketing=index > 0,
    )


def _has_varying_reports(model: LongVITA, config: Config) -> bool:
    """Whether a gradient is reported ready a different number of times from batch to batch.

    A vision encoder that is recomputed reports once for each chunk of tiles. megatron-core 0.16.1 starts each reduction
    at the number of reports in the first batch, so that later ones would start early, or not at all.
    """
    training = config.training
    return model.vision_model is not None and training.recompute.vision and "vision" in training.trainable
