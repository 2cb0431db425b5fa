"""Long-VITA: the way of a micro batch through vision tower, projector, language model and head."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from longvita.attention.seq_params import CachedSeqParams, SplitSeqParams
from longvita.attention.split import ReplicatedAttention
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.data.cp_shard import CPShard, shard_batch
from longvita.model.chunked_mlp import chunk_mlps
from longvita.model.feature_exchange import exchange_rows
from longvita.model.language import LanguageModel
from longvita.model.lm_head import chunked_cross_entropy, gathered_logits, select_rows
from longvita.model.projector import VisionProjection
from longvita.model.transformer_config import language_transformer_config, vision_transformer_config
from longvita.model.vision import VisionModel
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import undivided
from longvita.parallel.tile_sharing import plan_rows, tile_rounds

Mode = Literal["loss", "logits", "last"]
EXTRA_STATE = "._extra_state"
"""End of the names under which layers keep what is neither parameter nor buffer."""


class LongVITA(MegatronModule):
    """One chunk of the model: vision tower, projector and embeddings on the first, the head on the last."""

    def __init__(
        self,
        config: Config,
        groups: ParallelGroups,
        platform: Any,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ):
        transformer = language_transformer_config(config, platform)
        super().__init__(config=transformer)
        self.settings, self.groups, self.platform = config, groups, platform
        # Megatron's schedules and process groups ask for it.
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
        self.language_model = LanguageModel(
            config.model.language,
            transformer,
            groups,
            platform,
            pre_process,
            post_process,
            vp_stage,
            config.training.recompute.offload,
        )
        if config.training.mlp_chunk_size is not None:
            chunk_mlps(self.language_model.decoder.layers, config.training.mlp_chunk_size)
        self._freeze()

    def _freeze(self) -> None:
        parts = {
            "vision": self.vision_model,
            "projector": self.vision_projection,
            "language": self.language_model,
        }
        for name, part in parts.items():
            if part is not None and name not in self.settings.training.trainable:
                part.requires_grad_(False)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """What the previous pipeline stage sent: [t, 1, h] or [t / TP, 1, h], alone or in a list of one."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The weight that first and last stage share when embeddings are tied; Megatron's gradient reduction asks."""
        return self.language_model.shared_embedding_or_output_weight()

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, H, W] to feature rows [n, tokens per tile, h], `training.vision_chunk_size` tiles at a time."""
        return torch.cat([self._encode(chunk) for chunk in tiles.split(self.settings.training.vision_chunk_size)])

    def _encode(self, tiles: Tensor) -> Tensor:
        vision, projection = self.vision_model, self.vision_projection
        if vision is None or projection is None:
            raise RuntimeError("this pipeline stage holds no vision tower; encode tiles on the first stage")
        if len(tiles) == 0:
            side = self.settings.model
            return tiles.new_zeros((0, side.tokens_per_tile, side.language.hidden_size), dtype=self.config.params_dtype)
        trained = any(parameter.requires_grad for parameter in vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            hidden = vision(tiles)
        return projection(hidden)

    def forward(self, batch: LocalBatch, mode: Mode = "loss") -> Any:
        """One micro batch through this chunk.

        Not the last chunk: hidden states for the next one, [t, 1, h] or [t / TP, 1, h] with sequence parallel. The last
        chunk, by mode: "loss", the sum of the losses of this rank's rows (fp32 scalar), those losses [m] and their
        positions [m] in the micro batch, which are all of it but for context parallelism; "logits", the
        logits [t, v] of every position; "last", those [k, v] at batch.logit_positions. Logits are fp32 and whole on
        every TP rank.
        """
        split = self.groups.cp_size > 1 and not batch.replicated
        placement = self.platform.sequence_layout
        shard = shard_batch(batch, self.groups, placement, self.config.sequence_parallel) if split else None
        decoder_input = self._embed(batch, shard) if self.pre_process else None
        if shard is None:
            hidden = self.language_model(decoder_input, packed_seq_params(batch, self.groups), batch.position_offset)
        else:
            params = self.platform.split_seq_params(shard, self.groups, batch.kv_cache)
            hidden = self.language_model(decoder_input, params, positions=shard.take(batch.position_ids[0], 0))
        if not self.post_process:
            return hidden
        if mode == "loss":
            return self._loss(hidden, batch, shard)
        positions = torch.arange(batch.input_ids.shape[1], device=hidden.device)
        if mode == "last":
            if batch.logit_positions is None:
                raise ValueError('mode "last" needs batch.logit_positions, the positions whose logits are wanted')
            positions = batch.logit_positions
        if shard is not None:
            return self._split_logits(hidden, positions, shard)
        rows = select_rows(hidden, positions, self.groups.tp, self.config.sequence_parallel)
        return gathered_logits(rows, self.language_model.output_weight(), self.groups.tp)

    def _split_logits(self, hidden: Tensor, positions: Tensor, shard: CPShard) -> Tensor:
        """Logits [k, v] at positions of the whole micro batch, from the ranks that hold them; without a gradient."""
        cp_rank, tp_rank, row = shard.layout.rows_of_tokens(positions.cpu())
        rows = tp_rank * (shard.layout.local_length // shard.layout.tp_size) + row
        mine = torch.nonzero(cp_rank == self.groups.cp_rank)[:, 0]
        mine = mine[torch.argsort(rows[mine])]
        selected = select_rows(hidden, rows[mine].to(hidden.device), self.groups.tp, self.config.sequence_parallel)
        local = gathered_logits(selected, self.language_model.output_weight(), self.groups.tp)
        logits = local.new_zeros((len(positions), local.shape[1]))
        logits[mine.to(hidden.device)] = local
        dist.all_reduce(logits, group=self.groups.cp)
        return logits

    def _embed(self, batch: LocalBatch, shard: CPShard | None) -> Tensor:
        """Word embeddings of this rank's rows with the feature rows of the tiles in their places.

        Tiles are encoded, and their rows travel, `training.vision_chunk_size` of each rank at a time.
        """
        ids = batch.input_ids if shard is None else shard.take(batch.input_ids[0], 0)[None]
        embeddings = self.language_model.embed(ids)
        if not len(batch.tile_owners):
            return embeddings + self._blank_rows(batch).sum() * 0.0 if self._vision_is_trained() else embeddings
        tp_size = self.groups.tp_size if self.config.sequence_parallel else 1
        layout = undivided(ids.shape[1], tp_size) if shard is None else shard.layout
        chunk = self.settings.training.vision_chunk_size
        rounds = tile_rounds(batch.tile_owners, chunk)
        rows = self._rows_without_tiles(batch)
        for number in range(int(rounds.max()) + 1):
            members = rounds == number
            plan = plan_rows(
                batch.tile_starts[members],
                batch.tile_owners[members],
                self.settings.model.tokens_per_tile,
                layout,
                self.groups,
            ).to(embeddings.device)
            tiles = batch.tiles[number * chunk : (number + 1) * chunk]
            # A rank that has run out of tiles sends no rows, of the same graph as before.
            rows = self._encode(tiles).flatten(0, 1) if len(tiles) else rows[:0]
            received = exchange_rows(rows, plan, self.groups.tp_cp)
            embeddings = embeddings.index_copy(0, plan.positions, received[:, None].to(embeddings.dtype))
        return embeddings

    def _rows_without_tiles(self, batch: LocalBatch) -> Tensor:
        """Feature rows [0, h] for a rank without tiles.

        It sends none, but through the same graph as the others: the exchange is a collective in the backward pass too,
        and every rank has to come to it.
        """
        if len(batch.tiles) == 0 and self._vision_is_trained():
            return self._blank_rows(batch)[:0]
        return self._encode(batch.tiles[:0]).flatten(0, 1)

    def _vision_is_trained(self) -> bool:
        trainable = self.settings.training.trainable
        return self.training and torch.is_grad_enabled() and ("vision" in trainable or "projector" in trainable)

    def _blank_rows(self, batch: LocalBatch) -> Tensor:
        """Rows [tokens per tile, h] of a blank tile, to be multiplied by zero or left out: a rank without tiles still
        gives every parameter a gradient, so that overlapped gradient reductions start on every rank.
        """
        size = self.settings.model.vision.image_size
        return self._encode(batch.tiles.new_zeros((1, 3, size, size)))[0]

    def _loss(self, hidden: Tensor, batch: LocalBatch, shard: CPShard | None) -> tuple[Tensor, Tensor, Tensor]:
        labels = batch.labels[0] if shard is None else shard.labels(batch)
        positions = torch.nonzero(labels != IGNORED_LABEL)[:, 0]
        rows = select_rows(hidden, positions, self.groups.tp, self.config.sequence_parallel)
        loss, losses = chunked_cross_entropy(
            rows,
            self.language_model.output_weight(),
            labels[positions],
            self.groups.tp,
            self.settings.training.loss_chunk_size,
        )
        return loss, losses, positions if shard is None else shard.tokens[positions]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's sharded state; each TP rank's tower and projector are marked as replicas of TP rank 0's.

        Without the `_extra_state` of linear layers, which holds scales of FP8: without FP8 it is empty, and the layers
        of one platform have it where those of another have none.
        """
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.config.fp8 is None:
            state = {name: shard for name, shard in state.items() if not name.endswith(EXTRA_STATE)}
        for name, shard in state.items():
            if name.startswith((f"{prefix}vision_model.", f"{prefix}vision_projection.")):
                shard.replica_id = (0, self.groups.tp_rank, self.groups.dp_cp.rank())
        return state


def packed_seq_params(batch: LocalBatch, groups: ParallelGroups) -> PackedSeqParams:
    """Document bounds of a micro batch that this rank holds whole, with the KV cache when generating."""
    bounds = {
        "qkv_format": "thd",
        "cu_seqlens_q": batch.cu_seqlens,
        "cu_seqlens_kv": batch.cu_seqlens,
        "max_seqlen_q": batch.max_seqlen,
        "max_seqlen_kv": batch.max_seqlen,
    }
    if batch.kv_cache is None:
        return PackedSeqParams(**bounds)
    if batch.replicated:
        return SplitSeqParams(**bounds, split=ReplicatedAttention(groups.cp), kv_cache=batch.kv_cache)
    return CachedSeqParams(**bounds, kv_cache=batch.kv_cache)
