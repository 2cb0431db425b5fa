"""InternViT: patches of a tile to hidden states, on megatron-core's transformer block."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.config.schema import VisionConfig
from longvita.model.layer_specs import vision_layer_spec


class VisionModel(MegatronModule):
    """InternViT without a final norm (arXiv 2312.14238): class token, learned positions, layer scale, exact GELU.

    It is whole on every rank of a replica's first stage: `groups` are groups of this process alone.
    """

    def __init__(self, vision: VisionConfig, config: TransformerConfig, groups: ProcessGroupCollection, platform: Any):
        super().__init__(config=config)
        self.tp_group = groups.tp
        dtype, device = config.params_dtype, platform.device
        self.patch_embedding = torch.nn.Conv2d(
            3, vision.hidden_size, vision.patch_size, vision.patch_size, device=device, dtype=dtype
        )
        self.class_embedding = torch.nn.Parameter(torch.empty(1, 1, vision.hidden_size, device=device, dtype=dtype))
        self.position_embedding = torch.nn.Parameter(
            torch.empty(1, vision.sequence_length, vision.hidden_size, device=device, dtype=dtype)
        )
        self.decoder = TransformerBlock(
            config, vision_layer_spec(config, platform), post_layer_norm=False, pg_collection=groups
        )
        for layer in self.decoder.layers:
            # Megatron turns gradients on around the residual sum; with a trainable layer scale in it, an encoder run
            # without gradients would keep every activation.
            layer.bias_dropout_add_exec_handler = contextlib.nullcontext
        for parameter in self.parameters():
            # Column and row linears mark their weights as split over TP. These are not: each rank holds them whole, and
            # the gradient norm must count them once.
            parameter.tensor_model_parallel = False

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, H, W] to hidden states [n, patches + 1, C], class token first."""
        patches = self.patch_embedding(tiles.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_embedding.expand(len(tiles), -1, -1), patches], dim=1)
        hidden = (hidden + self.position_embedding).transpose(0, 1).contiguous()
        return self.decoder(hidden, attention_mask=None).transpose(0, 1)
