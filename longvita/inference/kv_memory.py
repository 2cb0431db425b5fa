"""Checks before prefill whether the KV cache of a prompt and its answer, and the computation of a chunk, fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from longvita.attention import kv_cache
from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit, layers_per_stage, local_query_groups
from longvita.inference.limits import LengthError
from longvita.inference.prompt import Prompt
from longvita.inference.working_memory import ELEMENT_BYTES, chunk_bytes
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform

MAX_FRACTION = 0.5
"""Of the memory that one prompt's KV cache may use while other prompts stay cached."""


def bytes_per_token(config: Config) -> int:
    """Return the bytes of one token's keys and values on the rank that caches it, on the stage with most layers."""
    layers, element = max(layers_per_stage(config)), ELEMENT_BYTES[config.training.precision]
    return 2 * layers * local_query_groups(config) * config.model.language.head_dim * element


def check_cache(
    prompt: Prompt,
    cached: int,
    new_tokens: int,
    room: Sequence[int],
    config: Config,
    groups: ParallelGroups,
    platform: Platform,
) -> int:
    """Return the fewest cached prompts to evict so that a prompt and an answer of `new_tokens` tokens fit.

    cached: the first tokens of the prompt, which are not computed again. room: from PromptCache.room. A collective over
    the replica. Raises LengthError on every rank where evicting all is not enough, with the bytes needed, the bytes
    free on the rank with least, and the layout, number of frames or chunk size that would fit.
    """
    free = torch.tensor(list(room), dtype=torch.int64, device=platform.device) + platform.memory()["free"]
    for group in (groups.tp_cp, groups.pp):
        if group.size() > 1:
            dist.all_reduce(free, op=dist.ReduceOp.MIN, group=group)
    tokens = len(prompt) + new_tokens
    pages = -(-tokens // (groups.cp_size * kv_cache.PAGE_ROWS))
    needed = pages * kv_cache.PAGE_ROWS * bytes_per_token(config)
    working = largest_chunk_bytes(prompt, cached, config)
    *others_kept, alone = free.tolist()
    for evicted, available in enumerate(others_kept):
        if needed <= min(MAX_FRACTION * available, available - working):
            return evicted
    if needed + working <= alone:
        return len(others_kept)
    advice = _advice(prompt, cached, tokens, needed, alone, config)
    raise LengthError(
        f"the keys and values of {tokens} tokens need {_gib(needed)} on each of {groups.cp_size} context-parallel "
        f"ranks and the computation of a prefill chunk {_gib(working)}, but {_gib(alone)} are free"
        + (f": {' or '.join(advice)} would fit" if advice else "")
    )


def largest_chunk_bytes(prompt: Prompt, cached: int, config: Config, chunk_size: int | None = None) -> int:
    """Return the bytes that the largest prefill chunk of a prompt needs, of which `cached` tokens are computed.

    chunk_size: inference.prefill_chunk_size when None.
    """
    per_tile = config.model.tokens_per_tile
    rows = min(len(prompt) - cached, max(chunk_size or config.inference.prefill_chunk_size, per_tile))
    return chunk_bytes(rows, min(rows // per_tile, len(prompt.tile_starts)), config)


def _advice(prompt: Prompt, cached: int, tokens: int, needed: int, free: int, config: Config) -> list[str]:
    """What would fit `free` bytes on each rank, where a cache of `needed` bytes and the computation do not."""
    each, per_tile, cp_size = bytes_per_token(config), config.model.tokens_per_tile, config.layout.context_parallel
    room = free - largest_chunk_bytes(prompt, cached, config)
    advice = [f"layout.context_parallel {-(-tokens * each // room)}"] if room >= each else []
    text = tokens - len(prompt.tile_starts) * (per_tile + TILE_MARKERS)
    frames = frames_that_fit(max(room, 0) // each * cp_size, per_tile, text)
    if frames > 0 and prompt.tile_starts:
        advice.append(f"{frames} frames and tiles in all (--max-num-frames)")
    smaller = config.inference.prefill_chunk_size // 2
    while smaller >= per_tile:
        if largest_chunk_bytes(prompt, cached, config, smaller) <= free - needed:
            return [*advice, f"--prefill-chunk-size {smaller}"]
        smaller //= 2
    return advice


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
