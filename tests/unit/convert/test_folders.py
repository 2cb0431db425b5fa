"""Conversion between Hugging Face folders without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import long_vita_settings, read_json
from longvita.checkpoint.hf.tensor_names import LONG_VITA
from longvita.convert.folders import convert_folder
from tests.unit.checkpoint.hf.test_read_weights import MODEL, random_tensors, write
from tools.quickstart.tokenizer import train_tokenizer


def test_there_and_back_through_the_internvl_format_is_bitwise(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    train_tokenizer(["a picture of one"], tmp_path / "tokenizer")
    first = write(tmp_path / "first", tensors)
    convert_folder(first, tmp_path / "native", "internvl", tmp_path / "tokenizer", max_shard_size="20KB")
    convert_folder(tmp_path / "native", tmp_path / "back", "long_vita")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    assert len(list((tmp_path / "native").glob("model-*.safetensors"))) > 3
    assert read_json(tmp_path / "back" / "config.json") == long_vita_settings(MODEL, "float32")


def test_conversion_can_change_the_dtype(tmp_path: Path):
    first = write(tmp_path / "first", random_tensors(LONG_VITA))
    convert_folder(first, tmp_path / "second", "long_vita", dtype=torch.bfloat16)
    found = load_file(tmp_path / "second" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "second" / "config.json")["torch_dtype"] == "bfloat16"


def test_conversion_without_a_tokenizer_or_onto_itself_is_refused(tmp_path: Path):
    folder = write(tmp_path / "first", random_tensors(LONG_VITA))
    with pytest.raises(CheckpointError, match="no tokenizer, which the internvl format needs"):
        convert_folder(folder, tmp_path / "second", "internvl")
    with pytest.raises(CheckpointError, match="same folder"):
        convert_folder(folder, folder, "long_vita")
    assert not (tmp_path / "second").exists()
