"""Megatron's TransformerConfig for the language model and the vision encoder, from our config."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from longvita.config.schema import Config, LanguageConfig, RecomputeConfig, VisionConfig
from longvita.errors import UserError
from longvita.platforms.base import Platform


class FlagError(UserError, ValueError):
    """A field of `training.megatron` that cannot be set."""


def _leave_alone(tensor: torch.Tensor) -> None:
    """Replace Megatron's initialiser; longvita.model.build draws the weights afterwards."""


def _common(config: Config, part: LanguageConfig | VisionConfig) -> dict[str, Any]:
    """Fields of both models."""
    bf16 = config.training.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    return {
        "num_layers": part.num_layers,
        "hidden_size": part.hidden_size,
        "ffn_hidden_size": part.ffn_hidden_size,
        "num_attention_heads": part.num_attention_heads,
        "layernorm_epsilon": part.layernorm_epsilon,
        "add_qkv_bias": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method": _leave_alone,
        "output_layer_init_method": _leave_alone,
        "embedding_init_method": _leave_alone,
        "calculate_per_token_loss": True,
        "params_dtype": dtype,
        "bf16": bf16,
        "pipeline_dtype": dtype,
    }


def _recompute(recompute: RecomputeConfig) -> dict[str, Any]:
    used = {"none": (), "selective": ("granularity",), "full": ("granularity", "method", "num_layers")}
    return {f"recompute_{name}": getattr(recompute, name) for name in used[recompute.granularity]}


def _flags(config: Config, own: dict[str, Any]) -> dict[str, Any]:
    """Return `training.megatron`. Raises FlagError for an unknown name, and for a field in `own`."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    for name in config.training.megatron:
        if name in own:
            raise FlagError(
                f"training.megatron.{name}: follows from the model, layout and training sections; set those"
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            fix = f"did you mean {' or '.join(close)}?" if close else "see its TransformerConfig for the names"
            raise FlagError(f"training.megatron.{name}: megatron-core's TransformerConfig has no such field; {fix}")
    return dict(config.training.megatron)


def language_transformer_config(config: Config, platform: Platform) -> TransformerConfig:
    """Return the config of Qwen2.5's decoder: RMSNorm, SwiGLU, bias on the query, key and value projections only.

    Raises FlagError for flags in `training.megatron` that megatron-core does not accept.
    """
    language, layout = config.model.language, config.layout
    fields: dict[str, Any] = {
        **_common(config, language),
        **_recompute(config.training.recompute),
        "num_query_groups": language.num_query_groups,
        "kv_channels": language.head_dim,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        "sequence_parallel": layout.sequence_parallel,
        "num_layers_in_first_pipeline_stage": layout.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": layout.num_layers_in_last_pipeline_stage,
    }
    flags = _flags(config, fields)
    fields |= platform.transformer_config_overrides(layout.virtual_pipeline)
    fields |= platform.language_config_overrides(config)
    try:
        return TransformerConfig(**(fields | flags))
    except (AssertionError, TypeError, ValueError) as error:
        if not flags:
            raise
        raise FlagError(f"training.megatron: megatron-core does not accept {flags}: {error}") from error


def vision_transformer_config(config: Config, platform: Platform) -> TransformerConfig:
    """Return the config of InternViT: LayerNorm, exact GELU, biases everywhere; replicated (no TP, PP, CP or SP)."""
    vision = config.model.vision
    fields: dict[str, Any] = {
        **_common(config, vision),
        "num_query_groups": vision.num_attention_heads,
        "kv_channels": vision.hidden_size // vision.num_attention_heads,
        "normalization": "LayerNorm",
        "gated_linear_unit": False,
        "activation_func": torch.nn.functional.gelu,
        "add_bias_linear": True,
    }
    if config.training.recompute.vision:
        fields |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    transformer = TransformerConfig(**(fields | platform.transformer_config_overrides()))
    # The platforms' fused kernels compute the tanh approximation or SwiGLU; InternViT needs exact GELU.
    transformer.bias_activation_fusion = False
    return transformer
