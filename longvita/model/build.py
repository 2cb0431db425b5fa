"""Builds the model chunks of this process."""

from __future__ import annotations

from typing import Any

from longvita.config.schema import Config
from longvita.model.initialisation import initialise
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups


def build_model(config: Config, groups: ParallelGroups, platform: Any, fresh: bool = True) -> list[LongVITA]:
    """The chunks of this pipeline stage: one, or `layout.virtual_pipeline` of them.

    Parameters lie on the platform's device in the precision of training; frozen parts take no gradient. `fresh` draws
    the weights from config.seed, the same at every layout; without it they are whatever the memory held, for a
    checkpoint to fill.
    """
    platform.seed(config.seed)
    chunks = config.layout.virtual_pipeline
    models = []
    for chunk in range(chunks):
        models.append(
            LongVITA(
                config,
                groups,
                platform,
                pre_process=groups.is_first_stage and chunk == 0,
                post_process=groups.is_last_stage and chunk == chunks - 1,
                vp_stage=chunk if chunks > 1 else None,
            ).to(platform.device)
        )
        if fresh:
            initialise(models[-1], config, groups)
    return models
