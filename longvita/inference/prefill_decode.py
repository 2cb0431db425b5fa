"""Prefill and decode of one sequence: chunks of tokens through this rank's pipeline stage, then tokens one by one."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kv_cache import AttentionObserver, KVCache, cached_rows
from longvita.attention.ring import plan_ring
from longvita.attention.seq_params import CachedSeqParams, ReplicatedSeqParams, SplitChunkSeqParams, one_document
from longvita.config.schema import Config
from longvita.errors import UserError
from longvita.inference.prompt import Prompt, TileSource, plan_chunks
from longvita.inference.sampling import Sampler
from longvita.model.generation_batch import GenerationBatch
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import compact_layouts
from longvita.parallel.tile_sharing import assign_tiles
from longvita.platforms.base import Platform


class TileError(UserError, RuntimeError):
    """A tile of the prompt could not be decoded; raised on every rank."""


def prefill(
    stage: PipelineStage,
    cache: KVCache,
    prompt: Prompt,
    config: Config,
    progress: Callable[[int], None] | None = None,
    observer: AttentionObserver | None = None,
) -> Tensor | None:
    """Run the part of the prompt that is not cached yet, at least its last token, and cache it.

    A tile is decoded and encoded with the chunk that holds its rows, so the tiles of a long video are never in memory
    at once. `progress` is called with the number of cached tokens after every chunk. With an `observer` the last token
    runs by itself, like those of the answer, and the observer stays with the cache.

    Returns the logits [v] after the prompt on the last pipeline stage, None on the others. Raises ValueError when the
    whole prompt is cached, TileError on every rank when a tile cannot be decoded.
    """
    if cache.length >= len(prompt):
        raise ValueError(f"the cache holds {cache.length} tokens, but the prompt has only {len(prompt)}")
    end = len(prompt) - (observer is not None)
    tokens_per_tile, chunk_size = config.model.tokens_per_tile, config.inference.prefill_chunk_size
    chunks = plan_chunks(cache.length, end, prompt.tile_starts, tokens_per_tile, chunk_size)
    if observer is not None:
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
            cache.observer = observer
        logits = stage.run(chunk, cache, prompt.tiles)
        if progress is not None:
            progress(cache.length)
    return logits


def decode(
    stage: PipelineStage,
    cache: KVCache,
    logits: Tensor | None,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield new tokens, identical on every rank, until one of `stop_ids` (yielded too) or `max_new_tokens` of them.

    logits: those after the prompt (last stage only). A token's keys and values are computed when the next token is
    requested, so the last token is never cached. All ranks must request the same number of tokens.
    """
    for count in range(1, max_new_tokens + 1):
        token = agree_on_token(logits, sampler, stage.groups, stage.device)
        yield token
        if token in stop_ids or count == max_new_tokens:
            return
        logits = stage.run(Chunk([token]), cache)


def agree_on_token(logits: Tensor | None, sampler: Sampler, groups: ParallelGroups, device: torch.device) -> int:
    """Sample the next token from `logits` [v] on the first rank of the last stage and broadcast it to all ranks.

    All ranks continue with one token even where their logits differ in the last bit. Raises ValueError for a last stage
    without logits.
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


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive tokens that go through the model at once."""

    input_ids: Sequence[int]
    """Token ids; at least one."""
    tile_starts: Sequence[int] = ()
    """Position in the chunk of the first token of each of its tiles."""
    tile_indices: Sequence[int] = ()
    """Index of each of these tiles in the source that loads them."""


class PipelineStage:
    """Runs chunks through the layers of this rank.

    Every rank of the replica runs the same chunks in the same order. Hidden states are sent from stage to stage; a
    stage continues with the next chunk while the following stage is still busy.
    """

    def __init__(self, model: LongVITA, config: Config, groups: ParallelGroups, platform: Platform):
        self.model, self.config, self.groups, self.device = model.eval(), config, groups, platform.device
        self.row_ranks = groups.tp_size if config.layout.sequence_parallel else 1
        """TP ranks that divide a chunk's rows."""
        self._sending: list[tuple[Any, Tensor]] = []

    @torch.inference_mode()
    def run(self, chunk: Chunk, cache: KVCache, tiles: TileSource | None = None) -> Tensor | None:
        """Run a chunk through this stage and count it as cached.

        Returns the logits [v] after the chunk's last token (fp32, complete on every TP and CP rank) on the last stage,
        None on the others. Raises TileError on every rank when a rank could not decode one of its tiles.
        """
        count = len(chunk.input_ids)
        batch = self._batch(chunk, cache, self._tiles(chunk, tiles))
        if not self.groups.is_first_stage:
            self.model.set_input_tensor(self._receive_hidden(batch.seq_params.max_seqlen_q))
        output = self.model.next_token_logits(batch)
        cache.advance(count, self._cached_positions(count, batch.seq_params))
        if self.groups.is_last_stage:
            return output
        self._send(output)
        return None

    def _batch(self, chunk: Chunk, cache: KVCache, tiles: Tensor) -> GenerationBatch:
        """Build the model's input; with sequence parallel padded at the end to a multiple of TP.

        Attention is causal, so no token attends to the padding, and the cache leaves it out (see `KVCache.advance`).
        Where the chunk is split over CP ranks, its layout pads each rank's rows instead.
        """
        count, cp_size = len(chunk.input_ids), self.groups.cp_size
        # With fewer tokens than pieces to cut them into, splitting saves nothing; then only results need to travel.
        split = cp_size > 1 and (count >= 2 * cp_size or len(chunk.tile_starts) > 0)
        padding = 0 if split else -count % self.row_ranks
        tile_starts = torch.tensor(list(chunk.tile_starts), dtype=torch.int64)
        owners = assign_tiles(len(tile_starts), self.groups.vision_size) if len(tile_starts) else tile_starts
        return GenerationBatch(
            input_ids=torch.tensor([[*chunk.input_ids, *([0] * padding)]], dtype=torch.int64, device=self.device),
            last=count - 1,
            tile_starts=tile_starts.to(self.device),
            tile_owners=owners.to(self.device),
            tiles=tiles.to(self.device),
            seq_params=self._split_params(count, cache) if split else self._params(count + padding, cache),
        )

    def _params(self, rows: int, cache: KVCache) -> CachedSeqParams:
        """Return the attention parameters of a chunk of which every rank has all rows."""
        fields = one_document(rows, self.device)
        if self.groups.cp_size == 1:
            return CachedSeqParams(**fields, kv_cache=cache)
        return ReplicatedSeqParams(**fields, kv_cache=cache, group=self.groups.cp)

    def _split_params(self, count: int, cache: KVCache) -> SplitChunkSeqParams:
        """Return the attention parameters of a chunk that is split over the CP ranks."""
        layout, _ = compact_layouts((count,), self.groups.cp_size, 1, self.row_ranks)
        fields = one_document(layout.local_length, self.device)
        plan = plan_ring(layout, self.groups.cp_rank)
        return SplitChunkSeqParams(**fields, kv_cache=cache, layout=layout, plan=plan, group=self.groups.cp)

    def _cached_positions(self, count: int, params: CachedSeqParams) -> list[int] | None:
        """Return the positions of the chunk's tokens that this rank caches; None without context parallelism."""
        past, rank = params.kv_cache.length, self.groups.cp_rank
        if isinstance(params, SplitChunkSeqParams):
            own = params.layout.tokens(rank)
            return (own[own >= 0] + past).tolist()
        if isinstance(params, ReplicatedSeqParams):
            return [past + row for row in cached_rows(count, past, self.groups.cp_size, rank)]
        return None

    def _tiles(self, chunk: Chunk, source: TileSource | None) -> Tensor:
        """Load the tiles of the chunk that this rank encodes, [n_local, 3, H, W]; none on later stages.

        Where a tile fails on one rank, every rank of the replica raises TileError here, so that none waits for features
        that are never sent.
        """
        size = self.config.model.vision.image_size
        tiles = torch.zeros((0, 3, size, size))
        if not len(chunk.tile_indices):
            return tiles
        error = ""
        if self.groups.is_first_stage:
            tiles, error = self._load(chunk, source, tiles)
            errors = [""] * self.groups.vision_size
            dist.all_gather_object(errors, error, group=self.groups.tp_cp)
            error = next((text for text in errors if text), "")
        if self.groups.pp_size > 1:
            error = self._forward_error(error)
        if error:
            raise TileError(error)
        return tiles

    def _load(self, chunk: Chunk, source: TileSource | None, none: Tensor) -> tuple[Tensor, str]:
        owners = assign_tiles(len(chunk.tile_indices), self.groups.vision_size)
        mine = [chunk.tile_indices[place] for place in torch.nonzero(owners == self.groups.vision_rank)[:, 0].tolist()]
        if not mine:
            return none, ""
        try:
            if source is None:
                raise ValueError(f"the chunk has {len(chunk.tile_indices)} tiles, but no source of tiles was given")
            return source.load(mine), ""
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is raised again, on every rank
            return none, f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)

    def _forward_error(self, error: str) -> str:
        """Send the first stage's error ("" for none) from stage to stage ahead of the hidden states."""
        failed = torch.tensor([int(bool(error))], dtype=torch.int64, device=self.device)
        if not self.groups.is_first_stage:
            dist.recv(failed, group=self.groups.pp, group_src=self.groups.pp_rank - 1)
        if not self.groups.is_last_stage:
            self._send(failed)
        return error or ("the first pipeline stage could not decode a tile" if failed.item() else "")

    def _receive_hidden(self, length: int) -> Tensor:
        shape = length // self.row_ranks, 1, self.config.model.language.hidden_size
        hidden = torch.empty(shape, dtype=self.model.config.pipeline_dtype, device=self.device)
        dist.recv(hidden, group=self.groups.pp, group_src=self.groups.pp_rank - 1)
        return hidden

    def _send(self, tensor: Tensor) -> None:
        """Start to send a tensor to the next stage; at most two are in flight at once."""
        while len(self._sending) > 1:
            self._sending.pop(0)[0].wait()
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=self.groups.pp, group_dst=self.groups.pp_rank + 1)
        # Keeps the tensor alive until it is sent.
        self._sending.append((work, tensor))
