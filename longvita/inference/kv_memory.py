"""Whether the KV cache of an answer fits the memory of its processes, found out before the prompt goes through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from longvita.attention import kv_cache
from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit, layers_per_stage, local_query_groups
from longvita.inference.limits import LengthError
from longvita.inference.prompt import Prompt
from longvita.parallel.groups import ParallelGroups

KEEPING_SHARE = 0.5
"""Most of the memory that a document may take while others are kept."""
_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


def bytes_per_token(config: Config) -> int:
    """Bytes of one token's keys and values on the rank that caches it: those of its pipeline stage's layers.

    The stage with the most layers counts.
    """
    layers, element = max(layers_per_stage(config)), _ELEMENT_BYTES[config.training.precision]
    return 2 * layers * local_query_groups(config) * config.model.language.head_dim * element


def check_cache(
    prompt: Prompt, new_tokens: int, room: Sequence[int], config: Config, groups: ParallelGroups, platform: Any
) -> int:
    """How many of the documents kept have to go, so that an answer of `new_tokens` tokens finds room; the fewest.

    `room`: see Documents.room. Documents are kept only where a part of the memory stays free for the work itself. A
    collective over the replica. Where dropping all of them is not enough, it raises LengthError on every rank, with the
    bytes needed and there on the rank that has least, and the context-parallel size and the number of frames that would
    fit.
    """
    free = torch.tensor(list(room), dtype=torch.int64, device=platform.device) + platform.memory()["free"]
    for group in (groups.tp_cp, groups.pp):
        if group.size() > 1:
            dist.all_reduce(free, op=dist.ReduceOp.MIN, group=group)
    each, tokens = bytes_per_token(config), len(prompt) + new_tokens
    needed = -(-tokens // (groups.cp_size * kv_cache.PAGE_ROWS)) * kv_cache.PAGE_ROWS * each
    *keeping, there = free.tolist()
    for dropped, room_then in enumerate(keeping):
        if needed <= KEEPING_SHARE * room_then:
            return dropped
    if needed <= there:
        return len(keeping)
    advice = [f"layout.context_parallel {-(-tokens * each // there)}"] if there >= each else []
    per_tile = config.model.tokens_per_tile
    text = tokens - len(prompt.tile_starts) * (per_tile + TILE_MARKERS)
    frames = frames_that_fit(there // each * groups.cp_size, per_tile, text)
    if frames > 0 and prompt.tile_starts:
        advice.append(f"{frames} frames and tiles in all (--max_num_frame)")
    fits = f": {' or '.join(advice)} would fit" if advice else ""
    raise LengthError(
        f"the keys and values of {tokens} tokens need {_gib(needed)} on each of {groups.cp_size} context-parallel "
        f"ranks, but {_gib(there)} are free{fits}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
