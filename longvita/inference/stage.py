"""One rank's part of a forward pass over a chunk of one sequence, in step with the other pipeline stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kv_cache import KVCache
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.errors import UserError
from longvita.inference.prompt import TileSource
from longvita.model.long_vita import LongVITA
from longvita.parallel.document_placement import chunk_layout, rows_in_turn
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import SequenceLayout
from longvita.parallel.tile_sharing import assign_tiles


class TileError(UserError, RuntimeError):
    """A tile of the prompt could not be decoded; raised on every rank."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive tokens that go through the model at once."""

    input_ids: Sequence[int]
    """Token ids; at least one."""
    tile_starts: Sequence[int] = ()
    """Position in the chunk of the first token of each of its tiles."""
    tile_indices: Sequence[int] = ()
    """Place of each of these tiles in the source that the tiles are loaded from."""


class PipelineStage:
    """Runs chunks through the layers that this rank holds.

    Every rank of the replica runs the same chunks in the same order. Hidden states pass from stage to stage; a stage
    goes on with the next chunk while the one after it is still busy.
    """

    def __init__(self, model: LongVITA, config: Config, groups: ParallelGroups, platform: Any):
        self.model, self.groups, self.device = model.eval(), groups, platform.device
        self.hidden_size = config.model.language.hidden_size
        self.image_size = config.model.vision.image_size
        self.sequence_parallel = config.layout.sequence_parallel
        self._sending: list[tuple[Any, Tensor]] = []

    @torch.inference_mode()
    def run(self, chunk: Chunk, cache: KVCache, tiles: TileSource | None = None) -> Tensor | None:
        """Passes a chunk through this stage and counts it as cached.

        Returns the logits [v] that follow the chunk's last token (fp32, whole on every TP rank) on the last stage and
        None on the others. Raises TileError on every rank when a rank could not decode one of its tiles.
        """
        batch = self._batch(chunk, cache, self._tiles(chunk, tiles)).to(self.device)
        layout = self._layout(batch) if self.groups.cp_size > 1 and not batch.replicated else None
        if not self.groups.is_first_stage:
            rows = batch.input_ids.shape[1] if layout is None else layout.local_length
            self.model.set_input_tensor(self._receive_hidden(rows))
        output = self.model(batch, mode="last")
        cache.advance(len(chunk.input_ids), self._cached_positions(len(chunk.input_ids), cache.length, layout))
        if self.groups.is_last_stage:
            return output[0]
        self._send(output)
        return None

    def _batch(self, chunk: Chunk, cache: KVCache, tiles: Tensor) -> LocalBatch:
        """The chunk as one document; with sequence parallel padded at the end to a multiple of TP.

        Attention is causal, so no token sees the padding; the cache leaves it out (see `KVCache.advance`). With context
        parallelism the layout pads each rank's rows instead, unless every rank computes all of them.
        """
        count, cp_size = len(chunk.input_ids), self.groups.cp_size
        # Fewer tokens than the pieces that they would be cut in: nothing is gained, and results alone need to travel.
        replicated = cp_size > 1 and count < 2 * cp_size and not len(chunk.tile_starts)
        padding = -count % self.groups.tp_size if self.sequence_parallel and (cp_size == 1 or replicated) else 0
        length = count + padding
        return LocalBatch(
            input_ids=torch.tensor([[*chunk.input_ids, *([0] * padding)]], dtype=torch.int64),
            labels=torch.full((1, length), IGNORED_LABEL, dtype=torch.int64),
            position_ids=torch.arange(cache.length, cache.length + length)[None],
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            max_seqlen=length,
            tile_starts=torch.tensor(list(chunk.tile_starts), dtype=torch.int64),
            tile_owners=assign_tiles(len(chunk.tile_starts), self.groups.vision_size),
            tiles=tiles,
            document_sources=["prompt"],
            padding_tokens=padding,
            kv_cache=cache,
            position_offset=cache.length,
            logit_positions=torch.tensor([count - 1], dtype=torch.int64),
            replicated=replicated,
        )

    def _layout(self, batch: LocalBatch) -> SequenceLayout:
        """How the chunk lies on the context-parallel ranks, as the model lays it out."""
        tp_size = self.groups.tp_size if self.sequence_parallel else 1
        return chunk_layout(batch.input_ids.shape[1], self.groups.cp_size, tp_size)

    def _cached_positions(self, count: int, past: int, layout: SequenceLayout | None) -> list[int] | None:
        """Positions of the tokens of a chunk that this rank caches; None where there is no other rank."""
        if self.groups.cp_size == 1:
            return None
        if layout is None:
            return [past + row for row in rows_in_turn(count, past, self.groups.cp_size, self.groups.cp_rank)]
        own = layout.tokens(self.groups.cp_rank)
        return (own[own >= 0] + past).tolist()

    def _tiles(self, chunk: Chunk, source: TileSource | None) -> Tensor:
        """The tiles of the chunk that this rank encodes [n_local, 3, H, W], none on later stages.

        Where a tile fails on one rank, every rank of the replica learns of it here and none waits for features that
        never come.
        """
        tiles = torch.zeros((0, 3, self.image_size, self.image_size))
        if not len(chunk.tile_indices):
            return tiles
        error = ""
        if self.groups.is_first_stage:
            tiles, error = self._load(chunk, source, tiles)
            errors = [""] * self.groups.vision_size
            dist.all_gather_object(errors, error, group=self.groups.tp_cp)
            error = next((text for text in errors if text), "")
        if self.groups.pp_size > 1:
            error = self._pass_on(error)
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

    def _pass_on(self, error: str) -> str:
        """The first stage's error text ("" for none), handed from stage to stage ahead of the hidden states."""
        failed = torch.tensor([int(bool(error))], dtype=torch.int64, device=self.device)
        if not self.groups.is_first_stage:
            dist.recv(failed, group=self.groups.pp, group_src=self.groups.pp_rank - 1)
        if not self.groups.is_last_stage:
            self._send(failed)
        return error or ("the first pipeline stage could not decode a tile" if failed.item() else "")

    def _receive_hidden(self, length: int) -> Tensor:
        rows = length // self.groups.tp_size if self.sequence_parallel else length
        dtype = self.model.config.pipeline_dtype
        hidden = torch.empty((rows, 1, self.hidden_size), dtype=dtype, device=self.device)
        dist.recv(hidden, group=self.groups.pp, group_src=self.groups.pp_rank - 1)
        return hidden

    def _send(self, tensor: Tensor) -> None:
        """Starts sending to the next stage; at most two tensors are on their way at once."""
        while len(self._sending) > 1:
            self._sending.pop(0)[0].wait()
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=self.groups.pp, group_dst=self.groups.pp_rank + 1)
        # The tensor must live until it has left.
        self._sending.append((work, tensor))
