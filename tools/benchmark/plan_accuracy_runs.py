"""Training steps whose memory and time are measured, for plan_accuracy.py."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel import groups as parallel_groups
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.vision_sharding import assign_tiles
from longvita.planning.contents import Contents
from longvita.platforms.base import Platform
from longvita.training.state import TrainingState, build_state
from longvita.training.step import train_step


def micro_batch(contents: Contents, config: Config, groups: ParallelGroups) -> LocalBatch:
    """A micro batch that holds what `contents` says: tiles from its beginning on, loss at its end."""
    tokens, size, per_tile = contents.tokens, config.model.vision.image_size, config.model.tokens_per_tile
    length = tokens // contents.documents
    owners = assign_tiles(contents.tiles, groups.vision_size)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.model.language.vocab_size, (1, tokens), generator=generator)
    labels = torch.full((1, tokens), IGNORED_LABEL)
    if contents.loss_tokens:
        labels[0, -contents.loss_tokens :] = ids[0, -contents.loss_tokens :]
    own = int((owners == groups.vision_rank).sum()) if groups.is_first_stage else 0
    return LocalBatch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length).repeat(contents.documents)[None],
        cu_seqlens=torch.arange(0, tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        tile_starts=(per_tile + 2) * torch.arange(contents.tiles) + 1,
        tile_owners=owners,
        tiles=torch.randn(own, 3, size, size, generator=generator),
        document_sources=["words"] * contents.documents,
        padding_tokens=0,
    )


def start(config: Config, platform: Platform) -> TrainingState:
    """A fresh state; an earlier one of this process is done with."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    return build_state(config, parallel_groups.initialize(config, platform), platform)


def peak_of_step(state: TrainingState, contents: Contents) -> int:
    """Most bytes that a step allocates beyond weights, gradients and optimizer state, on this rank.

    From the allocations that torch's profiler sees. Buffers that Megatron keeps for its collectives count; they are
    dropped before.
    """
    batches = endless(micro_batch(contents, state.config, state.groups))
    train_step(state, batches)
    parallel_state.get_global_memory_buffer().buffer.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(state, batches)
    return highest(profiler.profiler.kineto_results.experimental_event_tree())


def highest(events: list[Any]) -> int:
    """Most bytes that live at once by a profiler's tree of events.

    It does not see what another thread frees, as gloo's does with what it copies: a block whose address is given out
    again was free by then.
    """
    allocations = sorted(_allocations(events), key=lambda event: event.start_time_ns)
    live: dict[int, int] = {}
    peak = now = 0
    for event in allocations:
        block, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        now -= live.pop(block, 0)
        if size > 0:
            live[block] = size
            now += size
            peak = max(peak, now)
    return peak


def _allocations(events: list[Any]) -> Iterator[Any]:
    for event in events:
        if event.typed[0] == _EventType.Allocation:
            yield event
        yield from _allocations(event.children)


def endless(batch: LocalBatch) -> Iterator[LocalBatch]:
    """The same micro batch, again and again."""
    while True:
        yield dataclasses.replace(batch)
