"""New tokens one by one: every rank runs each of them, one rank chooses it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kv_cache import KVCache
from longvita.inference.sampling import Sampler
from longvita.inference.stage import Chunk, PipelineStage
from longvita.parallel.groups import ParallelGroups


def agree_on_token(logits: Tensor | None, sampler: Sampler, groups: ParallelGroups, device: Any) -> int:
    """The next token's id, sampled from `logits` [v] by the last stage's first rank and told to every other rank.

    Sampling once keeps the ranks together where the same logits differ in the last bit between devices.
    """
    token = torch.zeros(1, dtype=torch.int64, device=device)
    if groups.is_last_stage:
        if logits is None:
            raise ValueError("the last pipeline stage has no logits to sample from")
        if groups.vision_rank == 0:
            token[0] = sampler.sample(logits)
        if groups.vision_size > 1:
            dist.broadcast(token, group=groups.tp_cp, group_src=0)
    if groups.pp_size > 1:
        dist.broadcast(token, group=groups.pp, group_src=groups.pp_size - 1)
    return int(token)


def decode(
    stage: PipelineStage,
    cache: KVCache,
    logits: Tensor | None,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yields new tokens, the same on every rank, until one of `stop_ids` (yielded too) or `max_new_tokens` of them.

    `logits`: those after the prompt's last token (last stage alone). A token's keys and values are computed when the
    next one is asked for, so the last one is never in the cache. All ranks must ask for the same number of tokens.
    """
    for count in range(1, max_new_tokens + 1):
        token = agree_on_token(logits, sampler, stage.groups, stage.device)
        yield token
        if token in stop_ids or count == max_new_tokens:
            return
        logits = stage.run(Chunk([token]), cache)
