"""What a training process holds between steps: wrapped model chunks, optimizer, schedule and position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.model.build import build_model
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.training.optimizer import build_optimizer, build_scheduler


def build_state(
    config: Config,
    groups: ParallelGroups,
    platform: Platform,
    models: Sequence[LongVITA] | None = None,
    fresh: bool = True,
) -> TrainingState:
    """A state before its first step, around `models` or around freshly built ones (see build_model for `fresh`).

    The optimizer copies bf16 weights to fp32 here: call `optimizer.reload_model_params()` if weights change later.
    """
    models = list(models) if models is not None else build_model(config, groups, platform, fresh=fresh)
    # Megatron's optimizer wants one way of reducing for all chunks of a stage.
    overlap = config.training.overlap_grad_reduce and not any(_reports_vary(model, config) for model in models)
    chunks = [_wrap(model, config, index, overlap) for index, model in enumerate(models)]
    optimizer = build_optimizer(chunks, config)
    return TrainingState(config, groups, platform, models, chunks, optimizer, build_scheduler(optimizer, config))


def _wrap(model: LongVITA, config: Config, index: int, overlap: bool) -> DistributedDataParallel:
    settings: Any = model.config
    module = Float16Module(settings, model) if config.training.precision == "bf16" else model
    return DistributedDataParallel(
        settings,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, use_distributed_optimizer=True
        ),
        module,
        # Chunks after a stage's first one finish their backward pass early: nothing to overlap with smaller buckets.
        disable_bucketing=index > 0,
    )


def _reports_vary(model: LongVITA, config: Config) -> bool:
    """Whether a gradient is reported ready a different number of times from batch to batch.

    A tower that is computed again reports once a round of tiles; megatron-core 0.16.1 starts each reduction at the
    number of reports of the first batch, so that later ones would start early, or not at all.
    """
    training = config.training
    return model.vision_model is not None and training.recompute.vision and "vision" in training.trainable
