"""Qwen2.5 on megatron-core's GPTModel, with the head apart."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.config.schema import LanguageConfig
from longvita.model.offload import offloaded_inputs
from longvita.parallel.groups import ParallelGroups


class LanguageModel(GPTModel):
    """GPTModel whose forward ends at the final norm: the head (longvita.model.lm_head) takes the rows it needs.

    Every input is packed: documents one after the other, one batch row, bounds in PackedSeqParams.
    """

    def __init__(
        self,
        language: LanguageConfig,
        config: TransformerConfig,
        groups: ParallelGroups,
        platform: Any,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
        offload: bool = False,
    ):
        super().__init__(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(
                layer_specs=[platform.language_layer_spec(config, groups)]
                * get_num_layers_to_build(config, vp_stage, groups.pp_rank),
                layer_norm=platform.norm(),
            ),
            vocab_size=language.vocab_size,
            max_sequence_length=language.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            position_embedding_type="rope",
            rotary_base=language.rotary_base,
            share_embeddings_and_output_weights=language.tie_word_embeddings,
            pg_collection=groups.language,
            vp_stage=vp_stage,
        )
        self._offload = platform.offload if offload else None

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings of [1, t] ids: [t, 1, h], or this rank's [t / TP, 1, h] with sequence parallel."""
        return self.embedding(input_ids=input_ids, position_ids=None)

    def forward(  # type: ignore[override]
        self,
        decoder_input: Tensor | None,
        packed_seq_params: PackedSeqParams,
        position_offset: int = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after this stage's layers (and the final norm on the last): [t, 1, h] or [t / TP, 1, h].

        decoder_input: what `embed` returned, on the first stage; None elsewhere (see set_input_tensor).
        position_offset: tokens before this input that the KV cache holds; documents start there.
        positions: [t], each row's position in its document, where the rows are not whole documents in order.
        """
        if positions is None:
            rotary = self.rotary_pos_emb(packed_seq_params.max_seqlen_q, offset=position_offset, packed_seq=True)
        else:
            rotary = self._rotary_at(positions)
        with contextlib.ExitStack() as stack:
            if self._offload is not None:
                stack.enter_context(offloaded_inputs(self._offload, self.config.hidden_size))
            return self.decoder(
                hidden_states=decoder_input,
                attention_mask=None,
                rotary_pos_emb=rotary,
                packed_seq_params=packed_seq_params,
            )

    def _rotary_at(self, positions: Tensor) -> Tensor:
        """Megatron's rotary angles [t, 1, 1, d] at these positions, without those of all others."""
        inverse = self.rotary_pos_emb.inv_freq.to(positions.device)
        angles = torch.outer(positions.to(inverse.dtype), inverse)
        return torch.cat((angles, angles), dim=-1)[:, None, None]

    def output_weight(self) -> Tensor:
        """Rows of the output layer that this TP rank holds: [v / TP, h]; last stage only."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight
