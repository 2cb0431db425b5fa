"""InternViT and projector: tiles to feature rows of the language model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from longvita.config.schema import ModelConfig, VisionConfig
from longvita.platforms.base import Platform


class VisionModel(MegatronModule):
    """InternViT without a final norm (arXiv 2312.14238): class token, learned positions, layer scale, exact GELU.

    It is replicated on every rank of a replica's first stage: `groups` are groups of this process alone.
    """

    def __init__(
        self, vision: VisionConfig, config: TransformerConfig, groups: ProcessGroupCollection, platform: Platform
    ):
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
            # Megatron enables gradients around the residual sum. The sum has a trainable layer scale, so an encoder
            # that runs without gradients would keep every activation.
            layer.bias_dropout_add_exec_handler = contextlib.nullcontext
        for parameter in self.parameters():
            # Column and row linears mark their weights as sharded over TP. These are replicated: the gradient norm must
            # count them once.
            parameter.tensor_model_parallel = False

    def forward(self, tiles: Tensor) -> Tensor:
        """Encode tiles [n, 3, H, W] to hidden states [n, patches + 1, C], class token first."""
        patches = self.patch_embedding(tiles.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_embedding.expand(len(tiles), -1, -1), patches], dim=1)
        hidden = (hidden + self.position_embedding).transpose(0, 1).contiguous()
        return self.decoder(hidden, attention_mask=None).transpose(0, 1)


class LayerScale(torch.nn.Module):
    """Bias, layer scale and residual sum: residual + (x + bias) * scale, in place of Megatron's bias-dropout-add.

    One scale per channel (CaiT, arXiv 2103.17239): InternViT's ls1 and ls2. Megatron asks this module for a function at
    each call, because its own functions differ by mode. Here there is one.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(hidden_size, dtype=dtype))

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:
        """Return the function (output and bias, residual [s, b, h], dropout) -> [s, b, h]; there is no dropout."""
        return self._scale_and_add

    def _scale_and_add(self, output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, _: float) -> Tensor:
        output, bias = output_with_bias
        if bias is not None:
            output = output + bias
        return torch.addcmul(residual, output, self.scale)


def vision_layer_spec(config: TransformerConfig, platform: Platform) -> ModuleSpec:
    """Return the spec of an InternViT layer: x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x)).

    megatron-core has no spec with layer scales.
    """
    norm, column, row = platform.vision_layers()
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


class VisionProjection(MegatronModule):
    """The projector: pixel shuffle, LayerNorm, Linear, exact GELU, Linear; the linears have no bias."""

    def __init__(
        self, model: ModelConfig, config: TransformerConfig, groups: ProcessGroupCollection, platform: Platform
    ):
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
        """Project hidden states [n, patches + 1, C] to rows [n, tokens per tile, h]; the class token is dropped."""
        patches = hidden[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        rows = pixel_shuffle(patches.reshape(len(patches), side, side, -1), self.downsample).flatten(1, 2)
        return self.linear_fc2(torch.nn.functional.gelu(self.linear_fc1(self.layernorm(rows))))


def pixel_shuffle(hidden: Tensor, factor: int) -> Tensor:
    """Join each f x f square of patches to one row, as InternVL does: [n, w, h, C] to [n, h / f, w / f, C * f * f]."""
    n, w, h, channels = hidden.shape
    hidden = hidden.reshape(n, w, h // factor, channels * factor).permute(0, 2, 1, 3).contiguous()
    return hidden.view(n, h // factor, w // factor, channels * factor * factor).permute(0, 2, 1, 3).contiguous()
