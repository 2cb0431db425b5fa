"""config.json of the Hugging Face formats, to and from our ModelConfig.

Settings that our model does not have (sliding windows, scaled RoPE, query-key norms, RMS norms in the vision encoder)
are refused by name: a checkpoint that uses them would load and give wrong answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.quantised import check_not_quantised
from longvita.checkpoint.hf.safetensors_folder import SafetensorsReader
from longvita.checkpoint.hf.tensor_names import detect_names
from longvita.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig

NATIVE_PROJECTOR_EPSILON = 1e-5
"""Epsilon of the projector's norm in transformers' InternVL, which has no setting for it, and in the published
Long-VITA."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError with the file's name when it is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; a Hugging Face model folder needs it") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config_from_folder(folder: str | Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face folder, from its config.json and, for the projector, its weights' shapes.

    Parts that a folder does not describe keep their defaults: vision encoder and projector in a Qwen2.5 folder,
    everything else in an InternViT folder. Raises CheckpointError for other architectures, for settings that our
    model does not have, and for a quantised folder.
    """
    folder = Path(folder)
    check_not_quantised(folder)
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type", ""))
    architecture = next(iter(config.get("architectures") or ["?"]))
    known: dict[str, Callable[[Path, dict[str, Any]], ModelConfig]] = {
        "long_vita": _long_vita,
        "internvl": _internvl,
        "qwen2": lambda _, values: ModelConfig(language=language_config(values)),
        "intern_vit_6b": lambda _, values: ModelConfig(vision=vision_config(values)),
        "internvl_chat": lambda _, values: ModelConfig(vision=vision_config(values.get("vision_config", {}))),
    }
    if kind not in known:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {kind!r} ({architecture}) is none of {', '.join(sorted(known))}"
        )
    return known[kind](folder, config)


def _long_vita(folder: Path, config: dict[str, Any]) -> ModelConfig:
    vision = vision_config(config.get("visual") or _missing(folder, "visual"))
    epsilon = float(config.get("projector_layernorm_epsilon", NATIVE_PROJECTOR_EPSILON))
    return ModelConfig(
        name=folder.resolve().name,
        vision=vision,
        language=language_config(config),
        projector=_projector_from_weights(folder, config, vision, epsilon),
    )


def _projector_from_weights(
    folder: Path, config: dict[str, Any], vision: VisionConfig, epsilon: float
) -> ProjectorConfig:
    """The published config does not hold the projector's width: the first linear layer has it."""
    reader = SafetensorsReader(folder)
    names = detect_names(reader.names(), "long_vita").projector
    if names is None:
        return ProjectorConfig(hidden_size=vision.hidden_size, layernorm_epsilon=epsilon)
    middle, wide = reader.shape(f"{names.prefix}{names.fc1}.weight")
    side = round((wide / vision.hidden_size) ** 0.5)
    if side * side * vision.hidden_size != wide:
        raise CheckpointError(
            f"{names.prefix}{names.fc1}.weight is {(middle, wide)}: {wide} is no square times the vision width "
            f"{vision.hidden_size}"
        )
    return ProjectorConfig(hidden_size=middle, downsample=side, layernorm_epsilon=epsilon)


def _internvl(folder: Path, config: dict[str, Any]) -> ModelConfig:
    text = config.get("text_config") or _missing(folder, "text_config")
    if text.get("model_type") != "qwen2":
        raise CheckpointError(f"{folder}: text_config.model_type {text.get('model_type')!r} is not qwen2")
    _expect(config, "projector_hidden_act", "gelu")
    _expect(config, "vision_feature_layer", -1)
    _expect(config, "vision_feature_select_strategy", "default")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    language = language_config({**text, "tie_word_embeddings": tied})
    middle = int(config.get("projector_hidden_size", language.hidden_size))
    return ModelConfig(
        name=folder.resolve().name,
        vision=vision_config(config.get("vision_config") or _missing(folder, "vision_config")),
        language=language,
        projector=ProjectorConfig(hidden_size=middle, downsample=round(1 / float(config.get("downsample_ratio", 0.5)))),
    )


def _missing(folder: Path, key: str) -> Any:
    raise CheckpointError(f"{folder / 'config.json'} has no {key}")


def _expect(config: dict[str, Any], key: str, *allowed: Any) -> None:
    if key in config and config[key] not in allowed:
        wanted = " or ".join(repr(value) for value in allowed)
        raise CheckpointError(f"{key} is {config[key]!r}; this model has {wanted} only")


def _integer(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise CheckpointError(f"{key} is {value!r} in config.json; an integer is needed")
    return value


def language_config(config: dict[str, Any]) -> LanguageConfig:
    """Convert Qwen2's settings (the keys of transformers, old and new) to ours.

    Raises CheckpointError for settings that our model does not have.
    """
    _expect(config, "hidden_act", "silu")
    _expect(config, "use_sliding_window", False)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"RoPE scaling {rope} is not part of this model; use a checkpoint without it")
    heads, width = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
    head = config.get("head_dim")
    return LanguageConfig(
        num_layers=_integer(config, "num_hidden_layers"),
        hidden_size=width,
        ffn_hidden_size=_integer(config, "intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=int(config.get("num_key_value_heads") or heads),
        kv_channels=None if head in (None, width // heads) else _integer(config, "head_dim"),
        vocab_size=_integer(config, "vocab_size"),
        max_position_embeddings=int(config.get("max_position_embeddings", 32768)),
        rotary_base=int(rope.get("rope_theta") or config.get("rope_theta") or 10000),
        layernorm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def vision_config(config: dict[str, Any]) -> VisionConfig:
    """Convert InternViT's settings, with its own keys or those of transformers' InternVL, to ours.

    Raises CheckpointError for settings that our model does not have.
    """
    _expect(config, "hidden_act", "gelu")
    _expect(config, "norm_type", "layer_norm")
    _expect(config, "num_channels", 3)
    for key in ("qk_normalization", "use_qk_norm", "use_mask_token"):
        _expect(config, key, False)
    for key in ("qkv_bias", "attention_bias", "use_absolute_position_embeddings", "use_mean_pooling"):
        _expect(config, key, True)
    return VisionConfig(
        num_layers=_integer(config, "num_hidden_layers"),
        hidden_size=_integer(config, "hidden_size"),
        num_attention_heads=_integer(config, "num_attention_heads"),
        ffn_hidden_size=_integer(config, "intermediate_size"),
        patch_size=_side(config, "patch_size"),
        image_size=_side(config, "image_size"),
        layernorm_epsilon=float(config.get("layer_norm_eps", 1e-6)),
    )


def _side(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise CheckpointError(f"{key} is {value!r} in config.json; one side of a square is needed")
    return side


# ---- writing


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a config.json, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def qwen2_settings(language: LanguageConfig) -> dict[str, Any]:
    """The keys of Qwen2's own config.json for this language model."""
    return {
        "attention_dropout": 0.0,
        **({} if language.kv_channels is None else {"head_dim": language.head_dim}),
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": language.ffn_hidden_size,
        "max_position_embeddings": language.max_position_embeddings,
        "max_window_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_query_groups,
        "rms_norm_eps": language.layernorm_epsilon,
        "rope_scaling": None,
        "rope_theta": float(language.rotary_base),
        "sliding_window": None,
        "tie_word_embeddings": language.tie_word_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": language.vocab_size,
    }


def _vision_settings(vision: VisionConfig, **of_one_format: Any) -> dict[str, Any]:
    """The keys of a vision encoder that both formats have, and those of one of them, in alphabetical order."""
    shared = {
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "layer_norm_eps": vision.layernorm_epsilon,
        "norm_type": "layer_norm",
        "num_attention_heads": vision.num_attention_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers,
    }
    return dict(sorted({**shared, **of_one_format}.items()))


def long_vita_settings(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of the published format; `dtype` is the name of the weights' dtype, such as bfloat16."""
    vision = model.vision
    settings: dict[str, Any] = {
        "architectures": ["LongVITAForCausalLM"],
        "model_type": "long_vita",
        "torch_dtype": dtype,
        **qwen2_settings(model.language),
        "visual": _vision_settings(
            vision,
            architectures=["InternVisionModel"],
            drop_path_rate=0.0,
            dropout=0.0,
            image_size=vision.image_size,
            initializer_factor=1.0,
            initializer_range=0.02,
            model_type="intern_vit_6b",
            patch_size=vision.patch_size,
            qk_normalization=False,
            qkv_bias=True,
            use_flash_attn=False,
        ),
    }
    if model.projector.layernorm_epsilon != NATIVE_PROJECTOR_EPSILON:
        settings["projector_layernorm_epsilon"] = model.projector.layernorm_epsilon
    return settings


def internvl_settings(model: ModelConfig, dtype: str, image_token: int) -> dict[str, Any]:
    """config.json of transformers' InternVL; `projector_hidden_size` is our own key, which transformers keeps."""
    vision = model.vision
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "torch_dtype": dtype,
        "downsample_ratio": 1 / model.projector.downsample,
        "image_seq_length": model.tokens_per_tile,
        "image_token_id": image_token,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": model.projector.hidden_size,
        "text_config": {"model_type": "qwen2", "torch_dtype": dtype, **qwen2_settings(model.language)},
        "tie_word_embeddings": model.language.tie_word_embeddings,
        "vision_config": _vision_settings(
            vision,
            attention_bias=True,
            hidden_dropout_prob=0.0,
            image_size=[vision.image_size, vision.image_size],
            layer_scale_init_value=0.1,
            model_type="internvl_vision",
            patch_size=[vision.patch_size, vision.patch_size],
            projection_dropout=0.0,
            torch_dtype=dtype,
            use_absolute_position_embeddings=True,
            use_mask_token=False,
            use_mean_pooling=True,
            use_qk_norm=False,
        ),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
