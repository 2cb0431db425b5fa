"""config.json of every format to ModelConfig and back; settings that the model does not have are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import (
    internvl_settings,
    language_config,
    long_vita_settings,
    model_config_from_folder,
    vision_config,
)
from longvita.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig

QWEN2_5_14B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13824,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "model_type": "qwen2",
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
INTERN_VIT_300M = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.1,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 448,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}
MODEL = ModelConfig(
    vision=VisionConfig(num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, image_size=56),
    projector=ProjectorConfig(hidden_size=24, layernorm_epsilon=1e-5),
    language=LanguageConfig(
        num_layers=3,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=8,
        num_query_groups=2,
        vocab_size=128,
        rotary_base=500000,
        tie_word_embeddings=True,
    ),
)


def write(folder: Path, values: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_qwen2_5_as_published(tmp_path: Path):
    found = model_config_from_folder(write(tmp_path, QWEN2_5_14B))
    assert found.language == LanguageConfig(max_position_embeddings=32768)


def test_intern_vit_as_published(tmp_path: Path):
    assert model_config_from_folder(write(tmp_path / "a", INTERN_VIT_300M)).vision == VisionConfig()
    chat = {"model_type": "internvl_chat", "vision_config": INTERN_VIT_300M, "llm_config": {}}
    assert model_config_from_folder(write(tmp_path / "b", chat)).vision == VisionConfig()


def test_the_golden_folder(golden: Path):
    found = model_config_from_folder(golden / "model")
    assert (found.vision.num_layers, found.vision.hidden_size, found.tokens_per_tile) == (3, 32, 4)
    assert found.projector == ProjectorConfig(hidden_size=32)
    assert (found.language.num_query_groups, found.language.vocab_size) == (2, 512)


@pytest.mark.parametrize("downsample", [2, 4])
def test_what_is_written_is_read(tmp_path: Path, downsample: int):
    projector = MODEL.projector.model_copy(update={"downsample": downsample})
    model = MODEL.model_copy(update={"projector": projector})
    long_vita = write(tmp_path / "long_vita", long_vita_settings(model, "float32"))
    weight = torch.zeros(24, 32 * downsample**2)
    save_file({"model.vision_projection.mlp.0.weight": weight}, long_vita / "model.safetensors")
    internvl = write(tmp_path / "internvl", internvl_settings(model, "float32", 7))
    for folder in (long_vita, internvl):
        assert model_config_from_folder(folder) == model.model_copy(update={"name": folder.name})


def test_an_unusual_projector_norm_survives_the_published_format(tmp_path: Path):
    projector = MODEL.projector.model_copy(update={"layernorm_epsilon": 1e-6})
    folder = write(tmp_path, long_vita_settings(MODEL.model_copy(update={"projector": projector}), "float32"))
    save_file({"model.vision_projection.mlp.0.weight": torch.zeros(24, 128)}, folder / "model.safetensors")
    assert model_config_from_folder(folder).projector == projector


def test_transformers_reads_the_same_sizes(tmp_path: Path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(write(tmp_path, internvl_settings(MODEL, "bfloat16", 7)))
    assert config.model_type == "internvl"
    assert config.text_config.rope_parameters["rope_theta"] == 500000
    assert config.dtype == torch.bfloat16
    assert config.vision_config.image_size == [56, 56]
    assert language_config({**config.text_config.to_dict(), "tie_word_embeddings": True}) == MODEL.language
    assert vision_config(config.vision_config.to_dict()) == MODEL.vision


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE scaling .*yarn"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "RoPE scaling .*linear"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "hidden_size is None"),
    ],
)
def test_language_settings_that_are_refused(change: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        language_config({**QWEN2_5_14B, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm_type": "rms_norm"}, "norm_type is 'rms_norm'"),
        ({"qk_normalization": True}, "qk_normalization is True"),
        ({"use_qk_norm": True}, "use_qk_norm is True"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
        ({"use_mean_pooling": False}, "use_mean_pooling"),
        ({"image_size": [448, 336]}, "image_size is .*one side of a square"),
    ],
)
def test_vision_settings_that_are_refused(change: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        vision_config({**INTERN_VIT_300M, **change})


def test_other_models_are_refused_by_name(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model_type 'llama' \(LlamaForCausalLM\) is none of .*qwen2"):
        model_config_from_folder(write(tmp_path, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    settings = internvl_settings(MODEL, "float32", 7)
    settings["text_config"]["model_type"] = "qwen3"
    with pytest.raises(CheckpointError, match=r"text_config.model_type 'qwen3' is not qwen2"):
        model_config_from_folder(write(tmp_path, settings))


def test_an_absent_or_damaged_config_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config.json is not there"):
        model_config_from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        model_config_from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"holds a list"):
        model_config_from_folder(tmp_path)
