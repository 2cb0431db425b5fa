"""Long-VITA: a micro batch through vision encoder, projector, language model and head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from longvita.attention.seq_params import SplitChunkSeqParams, split_seq_params
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, CPShard, LocalBatch
from longvita.model.chunked_mlp import chunk_mlps
from longvita.model.feature_exchange import exchange_rows, plan_rows, tile_rounds
from longvita.model.generation_batch import GenerationBatch
from longvita.model.language import LanguageModel, chunked_cross_entropy, gathered_logits, select_rows
from longvita.model.transformer_config import language_transformer_config, vision_transformer_config
from longvita.model.vision import VisionModel, VisionProjection
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import compact_layouts, undivided
from longvita.platforms.base import Platform

EXTRA_STATE = "._extra_state"
"""Suffix of the names under which layers keep state that is neither parameter nor buffer."""


class TokenLosses(NamedTuple):
    """Losses of the rows of this rank that carry one."""

    loss: Tensor
    """fp32 scalar: their sum, differentiable."""
    losses: Tensor
    """[m] fp32, without a gradient."""
    positions: Tensor
    """[m] int64, position of each in the micro batch. Without context parallelism, all that carry loss."""


class LongVITA(MegatronModule):
    """One chunk of the model: vision encoder, projector and embeddings on the first, the head on the last."""

    def __init__(
        self,
        config: Config,
        groups: ParallelGroups,
        platform: Platform,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ):
        transformer = language_transformer_config(config, platform)
        super().__init__(config=transformer)
        self.settings, self.groups, self.platform = config, groups, platform
        self.tokens_per_tile = config.model.tokens_per_tile
        self.row_ranks = groups.tp_size if transformer.sequence_parallel else 1
        """TP ranks that divide the rows of hidden states."""
        # Megatron's schedules read it.
        self.model_type = ModelType.encoder_or_decoder
        self.tp_group = groups.tp
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = config.model.language.tie_word_embeddings
        self.vision_model: VisionModel | None = None
        self.vision_projection: VisionProjection | None = None
        if pre_process:
            vision = vision_transformer_config(config, platform)
            self.vision_model = VisionModel(config.model.vision, vision, groups.vision, platform)
            self.vision_projection = VisionProjection(config.model, vision, groups.vision, platform)
        self.language_model = LanguageModel(config, transformer, groups, platform, pre_process, post_process, vp_stage)
        if config.training.mlp_chunk_size is not None:
            chunk_mlps(self.language_model.decoder.layers, config.training.mlp_chunk_size)
        parts = {"vision": self.vision_model, "projector": self.vision_projection, "language": self.language_model}
        for name, part in parts.items():
            if part is not None and name not in config.training.trainable:
                part.requires_grad_(False)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Set the input from the previous pipeline stage: [t, 1, h] or [t / TP, 1, h], alone or in a list of one."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """Return the weight that first and last stage share with tied embeddings, for Megatron's gradient reduction."""
        return self.language_model.shared_embedding_or_output_weight()

    def forward(self, batch: LocalBatch) -> Tensor | TokenLosses:
        """Run one micro batch of training, as Megatron's schedules call it.

        Returns the hidden states for the next chunk, [t, 1, h] or [t / TP, 1, h] with sequence parallel; on the last
        chunk the losses.
        """
        shard = self._shard(batch)
        hidden = self._hidden_states(batch, shard)
        return self._losses(hidden, batch, shard) if self.post_process else hidden

    def logits(self, batch: LocalBatch, positions: Tensor | None = None) -> Tensor:
        """Compute fp32 logits [k, v] at `positions` [k] of a micro batch (all when None), without a gradient.

        They are complete on every TP and CP rank of the last chunk. Other chunks return hidden states, as `forward`.
        """
        shard = self._shard(batch)
        hidden = self._hidden_states(batch, shard)
        if not self.post_process:
            return hidden
        if positions is None:
            positions = torch.arange(batch.input_ids.shape[1], device=hidden.device)
        return self._logits(hidden, positions, shard)

    def next_token_logits(self, batch: GenerationBatch) -> Tensor:
        """Compute the fp32 logits [v] after a chunk's last token, and append the chunk to the layers' KV caches.

        They are complete on every TP and CP rank of the last chunk. Other chunks return hidden states, as `forward`.
        """
        ids, params, shard = batch.input_ids, batch.seq_params, None
        positions = params.kv_cache.length + torch.arange(ids.shape[1], device=ids.device)
        if isinstance(params, SplitChunkSeqParams):
            shard = CPShard(params.layout, params.layout, params.layout.tokens(self.groups.cp_rank).to(ids.device))
            positions = shard.take(positions, 0)
        decoder_input = self._embed(batch, shard) if self.pre_process else None
        hidden = self.language_model(decoder_input, params, positions)
        if not self.post_process:
            return hidden
        return self._logits(hidden, torch.tensor([batch.last], device=hidden.device), shard)[0]

    def _shard(self, batch: LocalBatch) -> CPShard | None:
        """Return this rank's rows of a micro batch; None without context parallelism."""
        if self.groups.cp_size == 1:
            return None
        lengths = tuple(batch.cu_seqlens.diff().tolist())
        library_layout = self.platform.library_layout(lengths, self.groups.cp_size, self.row_ranks)
        if library_layout is not None:
            ring_layout = layout = library_layout
        else:
            ring, ulysses = self.groups.cp_ring.size(), self.groups.cp_ulysses.size()
            ring_layout, layout = compact_layouts(lengths, ring, ulysses, self.row_ranks)
        return CPShard(layout, ring_layout, layout.tokens(self.groups.cp_rank).to(batch.input_ids.device))

    def _hidden_states(self, batch: LocalBatch, shard: CPShard | None) -> Tensor:
        """Run this chunk's layers over this rank's rows: [t, 1, h] or [t / TP, 1, h]."""
        decoder_input = self._embed(batch, shard) if self.pre_process else None
        if shard is not None:
            params = self.platform.library_seq_params(shard) or split_seq_params(shard, self.groups)
            return self.language_model(decoder_input, params, shard.take(batch.position_ids[0], 0))
        whole = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        )
        return self.language_model(decoder_input, whole)

    def _embed(self, batch: LocalBatch | GenerationBatch, shard: CPShard | None) -> Tensor:
        """Embed this rank's rows, with the tiles' feature rows at their positions.

        Tiles are encoded, and their rows exchanged, `training.vision_chunk_size` tiles of each rank at a time.
        """
        ids = batch.input_ids if shard is None else shard.take(batch.input_ids[0], 0)[None]
        embeddings = self.language_model.embedding(input_ids=ids, position_ids=None)
        if not len(batch.tile_owners):
            return embeddings + self._blank_rows(batch.tiles).sum() * 0.0 if self._trains_vision() else embeddings
        layout = undivided(ids.shape[1], self.row_ranks) if shard is None else shard.layout
        chunk = self.settings.training.vision_chunk_size
        rounds = tile_rounds(batch.tile_owners, chunk)
        # Rows of a rank without tiles. In training they have the graph of encoder and projector: the exchange is a
        # collective in the backward pass too, and every rank must take part.
        blank = len(batch.tiles) == 0 and self._trains_vision()
        rows = self._blank_rows(batch.tiles)[:0] if blank else self._encode(batch.tiles[:0]).flatten(0, 1)
        for number in range(int(rounds.max()) + 1):
            members = rounds == number
            starts, owners = batch.tile_starts[members], batch.tile_owners[members]
            plan = plan_rows(starts, owners, self.tokens_per_tile, layout, self.groups).to(embeddings.device)
            tiles = batch.tiles[number * chunk : (number + 1) * chunk]
            # A rank without tiles left sends no rows, but through a graph of encoder and projector all the same.
            rows = self._encode(tiles).flatten(0, 1) if len(tiles) else rows[:0]
            received = exchange_rows(rows, plan, self.groups.tp_cp)
            embeddings = embeddings.index_copy(0, plan.positions, received[:, None].to(embeddings.dtype))
        return embeddings

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """Encode tiles [n, 3, H, W] to feature rows [n, tokens per tile, h], `training.vision_chunk_size` at a time."""
        return torch.cat([self._encode(chunk) for chunk in tiles.split(self.settings.training.vision_chunk_size)])

    def _encode(self, tiles: Tensor) -> Tensor:
        vision, projection = self.vision_model, self.vision_projection
        if vision is None or projection is None:
            raise RuntimeError("this pipeline stage has no vision encoder; encode tiles on the first stage")
        if len(tiles) == 0:
            shape = (0, self.tokens_per_tile, self.settings.model.language.hidden_size)
            return tiles.new_zeros(shape, dtype=self.config.params_dtype)
        trained = any(parameter.requires_grad for parameter in vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            hidden = vision(tiles)
        return projection(hidden)

    def _trains_vision(self) -> bool:
        trainable = self.settings.training.trainable
        return self.training and torch.is_grad_enabled() and ("vision" in trainable or "projector" in trainable)

    def _blank_rows(self, tiles: Tensor) -> Tensor:
        """Encode a blank tile to rows [tokens per tile, h], to be multiplied by zero or dropped.

        A rank without tiles then still computes a gradient for every parameter, so that overlapped gradient reductions
        start on every rank.
        """
        size = self.settings.model.vision.image_size
        return self._encode(tiles.new_zeros((1, 3, size, size)))[0]

    def _losses(self, hidden: Tensor, batch: LocalBatch, shard: CPShard | None) -> TokenLosses:
        labels = batch.labels[0] if shard is None else shard.labels(batch)
        positions = torch.nonzero(labels != IGNORED_LABEL)[:, 0]
        rows = select_rows(hidden, positions, self.groups.tp, self.config.sequence_parallel)
        weight, chunk = self.language_model.output_weight(), self.settings.training.loss_chunk_size
        loss, losses = chunked_cross_entropy(rows, weight, labels[positions], self.groups.tp, chunk)
        return TokenLosses(loss, losses, positions if shard is None else shard.tokens[positions])

    def _logits(self, hidden: Tensor, positions: Tensor, shard: CPShard | None) -> Tensor:
        """Compute logits [k, v] at `positions` [k], ascending, of the whole input; every rank gets all of them."""
        weight = self.language_model.output_weight()
        if shard is None:
            rows = select_rows(hidden, positions, self.groups.tp, self.config.sequence_parallel)
            return gathered_logits(rows, weight, self.groups.tp)
        cp_rank, tp_rank, row = shard.layout.rows_of_tokens(positions.cpu())
        rows = tp_rank * (shard.layout.local_length // shard.layout.tp_size) + row
        own = torch.nonzero(cp_rank == self.groups.cp_rank)[:, 0]
        own = own[torch.argsort(rows[own])]
        selected = select_rows(hidden, rows[own].to(hidden.device), self.groups.tp, self.config.sequence_parallel)
        local = gathered_logits(selected, weight, self.groups.tp)
        logits = local.new_zeros((len(positions), local.shape[1]))
        logits[own.to(hidden.device)] = local
        dist.all_reduce(logits, group=self.groups.cp)
        return logits

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Return Megatron's sharded state. Vision encoder and projector are marked as replicas of TP rank 0's.

        Without FP8 it leaves out the `_extra_state` of linear layers: it would hold scales of FP8, is empty here, and
        exists on some platforms only.
        """
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.config.fp8 is None:
            state = {name: shard for name, shard in state.items() if not name.endswith(EXTRA_STATE)}
        for name, shard in state.items():
            if name.startswith((f"{prefix}vision_model.", f"{prefix}vision_projection.")):
                shard.replica_id = (0, self.groups.tp_rank, self.groups.dp_cp.rank())
        return state
