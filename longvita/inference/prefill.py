"""The prompt through the model, chunk by chunk, into the KV cache."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from torch import Tensor

from longvita.attention.kv_cache import KVCache
from longvita.inference.frame_attention import FrameWatch
from longvita.inference.prompt import Prompt, plan_chunks
from longvita.inference.stage import Chunk, PipelineStage


def prefill(
    stage: PipelineStage,
    cache: KVCache,
    prompt: Prompt,
    tokens_per_tile: int,
    chunk_size: int,
    progress: Callable[[int], None] | None = None,
    watch: FrameWatch | None = None,
) -> Tensor | None:
    """Runs the part of the prompt that is not cached yet; at least its last token must be left.

    A tile is decoded and encoded with the chunk that holds its rows, so a long video never lies in memory whole.
    `progress` is called with the number of cached tokens after every chunk. With `watch` the last token runs by itself,
    as the answer's do, and is watched; the cache goes on being watched.

    Returns the logits [v] of the first new token on the last pipeline stage, None on the others.
    """
    if cache.length >= len(prompt):
        raise ValueError(f"the cache holds {cache.length} tokens, but the prompt has only {len(prompt)}")
    end = len(prompt) - (watch is not None)
    chunks = plan_chunks(cache.length, end, prompt.tile_starts, tokens_per_tile, chunk_size)
    if watch is not None:
        chunks.append((end, len(prompt)))
    logits = None
    for start, end in chunks:
        first, last = bisect_left(prompt.tile_starts, start), bisect_left(prompt.tile_starts, end)
        chunk = Chunk(
            input_ids=prompt.input_ids[start:end],
            tile_starts=[tile - start for tile in prompt.tile_starts[first:last]],
            tile_indices=range(first, last),
        )
        if end == len(prompt):
            cache.watch = watch
        logits = stage.run(chunk, cache, prompt.tiles)
        if progress is not None:
            progress(cache.length)
    return logits
