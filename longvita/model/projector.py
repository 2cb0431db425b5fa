"""Pixel shuffle and MLP: hidden states of the vision tower to rows of the language model."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.config.schema import ModelConfig


def pixel_shuffle(hidden: Tensor, factor: int) -> Tensor:
    """[n, w, h, C] to [n, h / f, w / f, C * f * f]: each f x f square of patches becomes one row, as in InternVL."""
    n, w, h, channels = hidden.shape
    hidden = hidden.reshape(n, w, h // factor, channels * factor).permute(0, 2, 1, 3).contiguous()
    return hidden.view(n, h // factor, w // factor, channels * factor * factor).permute(0, 2, 1, 3).contiguous()


class VisionProjection(MegatronModule):
    """LayerNorm, Linear, exact GELU, Linear; the linears have no bias."""

    def __init__(self, model: ModelConfig, config: TransformerConfig, groups: ProcessGroupCollection, platform: Any):
        super().__init__(config=config)
        self.tp_group = groups.tp
        self.downsample = model.projector.downsample
        width = model.vision.hidden_size * self.downsample**2
        factory = {"device": platform.device, "dtype": config.params_dtype}
        self.layernorm = torch.nn.LayerNorm(width, eps=model.projector.layernorm_epsilon, **factory)
        self.linear_fc1 = torch.nn.Linear(width, model.projector.hidden_size, bias=False, **factory)
        self.linear_fc2 = torch.nn.Linear(
            model.projector.hidden_size, model.language.hidden_size, bias=False, **factory
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states of the tower [n, patches + 1, C] to rows [n, tokens per tile, h], without the class token."""
        patches = hidden[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        rows = pixel_shuffle(patches.reshape(len(patches), side, side, -1), self.downsample).flatten(1, 2)
        return self.linear_fc2(torch.nn.functional.gelu(self.linear_fc1(self.layernorm(rows))))
