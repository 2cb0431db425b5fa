"""Checks before prefill whether the KV cache of a prompt and its answer fits in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from longvita.attention import kv_cache
from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit, layers_per_stage, local_query_groups
from longvita.inference.limits import LengthError
from longvita.inference.prompt import Prompt
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform

MAX_FRACTION = 0.5
"""Of the memory that one prompt's KV cache may use while other prompts stay cached; the rest is for the computation."""
_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


def bytes_per_token(config: Config) -> int:
    """Return the bytes of one token's keys and values on the rank that caches it, on the stage with most layers."""
    layers, element = max(layers_per_stage(config)), _ELEMENT_BYTES[config.training.precision]
    return 2 * layers * local_query_groups(config) * config.model.language.head_dim * element


def check_cache(
    prompt: Prompt, new_tokens: int, room: Sequence[int], config: Config, groups: ParallelGroups, platform: Platform
) -> int:
    """Return the fewest cached prompts to evict so that a prompt and an answer of `new_tokens` tokens fit.

    room: from PromptCache.room. A collective over the replica. Raises LengthError on every rank where evicting all is
    not enough, with the bytes needed, the bytes free on the rank with least, and the context-parallel size and number
    of frames that would fit.
    """
    free = torch.tensor(list(room), dtype=torch.int64, device=platform.device) + platform.memory()["free"]
    for group in (groups.tp_cp, groups.pp):
        if group.size() > 1:
            dist.all_reduce(free, op=dist.ReduceOp.MIN, group=group)
    each, tokens = bytes_per_token(config), len(prompt) + new_tokens
    needed = -(-tokens // (groups.cp_size * kv_cache.PAGE_ROWS)) * kv_cache.PAGE_ROWS * each
    *others_kept, alone = free.tolist()
    for evicted, available in enumerate(others_kept):
        if needed <= MAX_FRACTION * available:
            return evicted
    if needed <= alone:
        return len(others_kept)
    advice = [f"layout.context_parallel {-(-tokens * each // alone)}"] if alone >= each else []
    per_tile = config.model.tokens_per_tile
    text = tokens - len(prompt.tile_starts) * (per_tile + TILE_MARKERS)
    frames = frames_that_fit(alone // each * groups.cp_size, per_tile, text)
    if frames > 0 and prompt.tile_starts:
        advice.append(f"{frames} frames and tiles in all (--max-num-frames)")
    fits = f": {' or '.join(advice)} would fit" if advice else ""
    raise LengthError(
        f"the keys and values of {tokens} tokens need {_gib(needed)} on each of {groups.cp_size} context-parallel "
        f"ranks, but {_gib(alone)} are free{fits}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
