"""The decoder layer of megatron-core's local (plain torch) modules with our attention and norm."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec

from longvita.platforms.norms import RMSNorm


def language_layer_spec(core_attention: type) -> ModuleSpec:
    """A decoder layer of the language model with a CoreAttention class.

    In checkpoints the norms have the names of Transformer Engine's fused norm and linear layers, as in megatron-core's
    local spec, so that a checkpoint loads on every platform.
    """
    spec = get_gpt_layer_local_spec()
    layer: Any = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    layer.self_attention.submodules.core_attention = core_attention
    return spec
