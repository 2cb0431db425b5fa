"""A quantised folder is refused by that word, whatever else is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import model_config_from_folder
from longvita.checkpoint.hf.quantised import check_not_quantised
from longvita.checkpoint.hf.read_weights import SourceFolder
from longvita.config.schema import ModelConfig

WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def write(folder: Path, config: dict[str, Any], file: str = "model.safetensors", **tensors: torch.Tensor) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "of another kind"} | config))
    if tensors:
        save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / file)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        {"compression_config": {"format": "int-quantized"}},
    ],
)
def test_a_config_names_the_quantisation(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, config)
    with pytest.raises(CheckpointError, match=r"is quantised \(\w+_config in config.json\).*; fix: "):
        model_config_from_folder(tmp_path)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_names_the_quantisation(tmp_path: Path, name: str) -> None:
    (write(tmp_path, {}) / name).write_text("{}")
    with pytest.raises(CheckpointError, match="is quantised"):
        model_config_from_folder(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("file", ["model.safetensors", "model-00002-of-00009.safetensors"])
def test_weights_of_codes_are_quantised_though_no_config_names_it(tmp_path: Path, dtype, file: str) -> None:
    write(tmp_path, {}, file, **{WEIGHT.replace(".", "__"): torch.zeros(2, 2).to(dtype)})
    for read in (model_config_from_folder, lambda folder: SourceFolder(folder, ModelConfig())):
        with pytest.raises(CheckpointError, match=rf"is quantised \({WEIGHT} is of type"):
            read(tmp_path)


def test_buffers_and_unused_files_are_no_quantisation(tmp_path: Path) -> None:
    buffers = {"embeddings__position_ids": torch.arange(3, dtype=torch.int32), "mask": torch.ones(2, dtype=torch.bool)}
    folder = write(tmp_path, {"quantization_config": None}, norm=torch.ones(3).bfloat16(), **buffers)
    save_file({"codes": torch.zeros(2, dtype=torch.int8)}, folder / "adapter.safetensors")
    check_not_quantised(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    check_not_quantised(folder)
