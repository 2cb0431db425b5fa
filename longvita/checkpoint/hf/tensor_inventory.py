"""What a whole model holds: our parameters by name, and the Hugging Face tensors that carry them."""

from __future__ import annotations

from collections.abc import Iterable

from longvita.checkpoint.hf.tensor_map import HFTensor, Mapper
from longvita.checkpoint.hf.tensor_names import Names
from longvita.config.schema import ModelConfig

PARTS = ("vision", "projector", "language")

_VISION_OUTSIDE = ("class_embedding", "patch_embedding.weight", "patch_embedding.bias", "position_embedding")
_VISION_LAYER = (
    *(f"input_layernorm.{x}" for x in ("weight", "bias")),
    *(f"self_attention.linear_qkv.{x}" for x in ("weight", "bias")),
    *(f"self_attention.linear_proj.{x}" for x in ("weight", "bias")),
    "self_attn_bda.scale",
    *(f"pre_mlp_layernorm.{x}" for x in ("weight", "bias")),
    *(f"mlp.linear_fc1.{x}" for x in ("weight", "bias")),
    *(f"mlp.linear_fc2.{x}" for x in ("weight", "bias")),
    "mlp_bda.scale",
)
_PROJECTOR = ("layernorm.weight", "layernorm.bias", "linear_fc1.weight", "linear_fc2.weight")
_LANGUAGE_LAYER = (
    "input_layernorm.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.linear_proj.weight",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)


def parameter_names(config: ModelConfig, parts: Iterable[str] = PARTS) -> list[str]:
    """Names of all parameters of the whole model, the layers' numbers being those of the whole model."""
    parts, names = set(parts), []
    if "vision" in parts:
        names += [f"vision_model.{x}" for x in _VISION_OUTSIDE]
        for layer in range(config.vision.num_layers):
            names += [f"vision_model.decoder.layers.{layer}.{x}" for x in _VISION_LAYER]
    if "projector" in parts:
        names += [f"vision_projection.{x}" for x in _PROJECTOR]
    if "language" in parts:
        names.append("language_model.embedding.word_embeddings.weight")
        for layer in range(config.language.num_layers):
            names += [f"language_model.decoder.layers.{layer}.{x}" for x in _LANGUAGE_LAYER]
        names.append("language_model.decoder.final_layernorm.weight")
        if not config.language.tie_word_embeddings:
            names.append("language_model.output_layer.weight")
    return names


def hf_tensors(
    config: ModelConfig, names: Names, mapper: Mapper | None = None, parts: Iterable[str] = PARTS
) -> list[HFTensor]:
    """All tensors that a folder of this model holds in this naming, in the model's order."""
    mapper = mapper or Mapper(config, names)
    found: dict[str, HFTensor] = {}
    for parameter in parameter_names(config, parts):
        found.update(mapper.map(parameter).tensors)
    if "projector" in set(parts) and names.projector is not None and names.projector.padded:
        for module in (names.projector.fc1, names.projector.fc2):
            bias = f"{names.projector.prefix}{module}.bias"
            found[bias] = HFTensor(bias, (config.language.hidden_size,), "projector", padded=True)
    return list(found.values())
