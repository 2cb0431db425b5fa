"""Layer specs that megatron-core has no ready one for: InternViT's layer with its layer scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor


class LayerScale(torch.nn.Module):
    """Bias, layer scale and residual sum: residual + (x + bias) * scale, in the place of Megatron's bias-dropout-add.

    The scale is one value a channel (CaiT, arXiv 2103.17239), InternViT's ls1 and ls2. Megatron asks this module for a
    function at each call, since its own variants differ by mode; there is one function here.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(hidden_size, dtype=dtype))

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:
        """The function (output and bias, residual [s, b, h], dropout) -> [s, b, h]; InternViT has no dropout."""
        return self._scale_and_add

    def _scale_and_add(self, output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, _: float) -> Tensor:
        output, bias = output_with_bias
        if bias is not None:
            output = output + bias
        return torch.addcmul(residual, output, self.scale)


def vision_layer_spec(config: TransformerConfig, platform: Any) -> ModuleSpec:
    """One InternViT layer: x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x))."""
    column, row = platform.vision_linears()
    norm = platform.vision_norm()
    scale = ModuleSpec(module=LayerScale, params={"hidden_size": config.hidden_size, "dtype": config.params_dtype})
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column, core_attention=platform.vision_attention(), linear_proj=row
                ),
            ),
            self_attn_bda=scale,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=scale,
        ),
    )
