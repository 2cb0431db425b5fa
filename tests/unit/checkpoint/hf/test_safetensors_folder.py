"""Streaming safetensors files out and slices of them in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.safetensors_folder import INDEX, SafetensorsReader, ShardedWriter, size_in_bytes

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "c": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float64),
    "d": torch.zeros(2, 0),
}


def write(folder: Path, limit: int, tensors: dict[str, torch.Tensor] = TENSORS) -> None:
    announced = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    with ShardedWriter(folder, announced, limit) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


@pytest.mark.parametrize("limit, files", [(10**6, 1), (48, 2), (1, 4)])
def test_what_is_written_is_read_by_the_safetensors_library(tmp_path: Path, limit: int, files: int):
    write(tmp_path, limit)
    paths = sorted(tmp_path.glob("*.safetensors"))
    found = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert len(paths) == files
    assert (tmp_path / INDEX).is_file() == (files > 1)
    if files > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert set(index["weight_map"].values()) == {path.name for path in paths}
        assert index["metadata"]["total_size"] == 12 * 4 + 10 * 2 + 3 * 8


def test_slices_are_read_from_one_file_and_from_shards(tmp_path: Path):
    for limit in (10**6, 1):
        folder = tmp_path / str(limit)
        write(folder, limit)
        reader = SafetensorsReader(folder)
        assert reader.names() == set(TENSORS)
        assert reader.shape("a") == (3, 4)
        assert reader.dtype("b") == "BF16"
        assert torch.equal(reader.read("a", 0, 1, 2), TENSORS["a"][1:3])
        assert torch.equal(reader.read("a", 1, 2, 2), TENSORS["a"][:, 2:4])
        assert torch.equal(reader.read("b"), TENSORS["b"])


def test_a_second_export_leaves_no_shard_of_the_first(tmp_path: Path):
    write(tmp_path, 1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    write(tmp_path, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_interrupted_export_leaves_nothing_that_looks_complete(tmp_path: Path):
    announced = [("a", (3, 4), torch.float32), ("c", (3,), torch.float64)]
    with pytest.raises(RuntimeError, match="no more"):
        with ShardedWriter(tmp_path, announced, 10**6) as writer:
            writer.write("a", TENSORS["a"])
            raise RuntimeError("no more")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="c was announced and not written"):
        with ShardedWriter(tmp_path, announced, 10**6) as writer:
            writer.write("a", TENSORS["a"])
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name, tensor", [("c", TENSORS["c"]), ("a", TENSORS["a"].t()), ("a", TENSORS["a"].half())])
def test_a_tensor_other_than_the_announced_one_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor):
    with pytest.raises(CheckpointError, match=r"next is a \(3, 4\) torch.float32"):
        with ShardedWriter(tmp_path, [("a", (3, 4), torch.float32), ("c", (3,), torch.float64)], 10**6) as writer:
            writer.write(name, tensor)


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("700", 700), (12, 12)])
def test_sizes(text: str | int, size: int):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 bananas", "0", "-1MB"])
def test_texts_that_are_no_size_are_refused(text: str):
    with pytest.raises(CheckpointError, match="max_shard_size"):
        size_in_bytes(text)


def test_a_file_cut_short_is_named(tmp_path: Path):
    write(tmp_path, 10**6)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or cut short"):
        SafetensorsReader(tmp_path)


def test_a_missing_shard_of_the_index_is_named(tmp_path: Path):
    write(tmp_path, 1)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing: model-00002-of-00004.safetensors"):
        SafetensorsReader(tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(tmp_path: Path):
    write(tmp_path, 1)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00004.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks ghost"):
        SafetensorsReader(tmp_path).read("ghost")


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "expected model.safetensors"),
        (["pytorch_model.bin"], "save it as safetensors first"),
        (["x.safetensors", "y.safetensors"], "it has 2 of them and no"),
    ],
)
def test_a_folder_without_weights_is_refused_with_the_reason(tmp_path: Path, files: list[str], message: str):
    for name in files:
        save_file({"t": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsReader(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path):
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        SafetensorsReader(tmp_path)
