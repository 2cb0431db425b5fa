"""Hugging Face weights read at every layout and written again, bit by bit; errors reach every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longvita.checkpoint import manifest
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import long_vita_settings, model_config_from_folder, write_json
from longvita.checkpoint.hf.read_weights import read_weights
from longvita.checkpoint.hf.tensor_map import hf_tensors, parameter_names
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA
from longvita.checkpoint.hf.write_weights import write_weights
from longvita.checkpoint.save import save_weights
from longvita.checkpoint.sources import load_weights, model_config
from longvita.commands import convert
from longvita.config.schema import Config
from longvita.model.build import build_model, global_names
from longvita.platforms import get
from tests.distributed.helpers import run_distributed
from tests.distributed.mixed_batch import tiny_config
from tools.quickstart.tokenizer import train_tokenizer

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2_uneven": {"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 1},
    "pp2_interleaved": {"pipeline_parallel": 2, "virtual_pipeline": 2},
    "tp2_pp2": {"tensor_parallel": 2, "pipeline_parallel": 2},
    "dp2": {},
}


def processes(name: str) -> int:
    layout = LAYOUTS[name]
    return 2 if name == "dp2" else layout.get("tensor_parallel", 1) * layout.get("pipeline_parallel", 1)


def sizes(tied: bool = False) -> dict[str, Any]:
    return {"language": {"vocab_size": 400, "tie_word_embeddings": tied}}


def settings(layout: dict[str, Any], tied: bool = False, precision: str = "fp32") -> Config:
    return tiny_config(model=sizes(tied), layout=layout, training={"precision": precision})


def random_folder(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False, vocabulary: int = 400) -> Path:
    """Write a folder in the published format with random weights; its path."""
    model = settings({}, tied).model
    generator = torch.Generator().manual_seed(9)
    tensors = {x.name: torch.randn(x.shape, generator=generator).to(dtype) for x in hf_tensors(model, LONG_VITA)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][:vocabulary].contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", long_vita_settings(model, str(dtype).removeprefix("torch.")))
    return folder


def load_all(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def read_and_write(rank: int, world: int, config: Config, source: str, target: str, tokenizer: str) -> list[str]:
    """Read SOURCE, write TARGET/long_vita and TARGET/internvl; the parameters' names on this rank."""
    platform = get("cpu")
    platform.activate()
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform)
    read_weights(models, source, groups)
    write_weights(models, Path(target) / "long_vita", groups, max_shard_size="40KB")
    write_weights(models, Path(target) / "internvl", groups, INTERNVL, tokenizer)
    return [name for model in models for name, _ in global_names(model)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one picture"], folder)
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_written_bit_by_bit_at_every_layout(tmp_path: Path, tokenizer: str, layout: str):
    source = random_folder(tmp_path / "source")
    config = settings(LAYOUTS[layout])
    names = run_distributed(read_and_write, processes(layout), config, str(source), str(tmp_path), tokenizer)
    wanted = load_all(source)
    assert len(list((tmp_path / "long_vita").glob("*.safetensors"))) > 1
    same(load_all(tmp_path / "long_vita"), wanted)
    assert {name for rank in names for name in rank} == set(parameter_names(config.model))
    native = load_all(tmp_path / "internvl")
    assert native.keys() == {tensor.name for tensor in hf_tensors(config.model, INTERNVL)}
    middle = config.model.projector.hidden_size
    first = native["multi_modal_projector.linear_1.weight"]
    assert torch.equal(first[:middle], wanted["model.vision_projection.mlp.0.weight"])
    assert not first[middle:].any()
    layer = "language_model.model.layers.3.self_attn.k_proj.weight"
    assert torch.equal(native[layer], wanted["model.layers.3.self_attn.k_proj.weight"])
    assert torch.equal(native["language_model.lm_head.weight"], wanted["lm_head.weight"])
    query, key, value = wanted["model.vision_model.encoder.layers.1.attn.qkv.weight"].chunk(3)
    for letter, rows in zip("qkv", (query, key, value), strict=True):
        assert torch.equal(native[f"vision_tower.encoder.layer.1.attention.{letter}_proj.weight"], rows)
    assert model_config_from_folder(tmp_path / "long_vita").language == config.model.language


@pytest.mark.parametrize("layout", ["tp2_sp", "pp2_uneven"])
def test_bf16_and_tied_embeddings_are_written_bit_by_bit(tmp_path: Path, tokenizer: str, layout: str):
    source = random_folder(tmp_path / "source", torch.bfloat16, tied=True)
    config = settings(LAYOUTS[layout], tied=True, precision="bf16")
    run_distributed(read_and_write, 2, config, str(source), str(tmp_path), tokenizer)
    wanted = load_all(source)
    assert "lm_head.weight" not in wanted
    same(load_all(tmp_path / "long_vita"), wanted)


def test_a_shorter_vocabulary_is_filled_identically_at_every_tp(tmp_path: Path, tokenizer: str):
    source = random_folder(tmp_path / "source", vocabulary=150)
    for name in ("tp1", "tp2_sp"):
        config = settings(LAYOUTS[name])
        run_distributed(read_and_write, processes(name), config, str(source), str(tmp_path / name), tokenizer)
    one, two = (load_all(tmp_path / name / "long_vita") for name in ("tp1", "tp2_sp"))
    same(two, one)
    rows = load_all(source)["lm_head.weight"]
    assert torch.equal(one["lm_head.weight"][:150], rows)
    torch.testing.assert_close(one["lm_head.weight"][150:], rows.mean(0).expand(250, -1))


def read_error(rank: int, world: int, config: Config, source: str) -> str:
    platform = get("cpu")
    platform.activate()
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform)
    with pytest.raises(CheckpointError) as caught:
        read_weights(models, source, groups)
    return str(caught.value)


def test_an_error_on_one_stage_is_raised_on_every_rank(tmp_path: Path):
    source = random_folder(tmp_path / "source")
    tensors = load_all(source)
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(32, 31)
    save_file(tensors, source / "model.safetensors")
    texts = run_distributed(read_error, 2, settings(LAYOUTS["pp2_uneven"]), str(source))
    assert texts[0] == texts[1]
    for part in ("rank 0", "model.layers.0.self_attn.o_proj.weight", "(32, 31)", "(32, 32)"):
        assert part in texts[0]


def write_ours(rank: int, world: int, config: Config, source: str, target: str) -> None:
    platform = get("cpu")
    platform.activate()
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform)
    load_weights(models, source, groups, platform)
    save_weights(models, config, Path(target), platform)


def test_a_training_checkpoint_is_converted_at_another_layout(tmp_path: Path):
    """Folder, checkpoint at TP2, then `longvita convert` at PP2."""
    source = random_folder(tmp_path / "source")
    step = tmp_path / "checkpoint"
    run_distributed(write_ours, 2, settings(LAYOUTS["tp2_sp"]), str(source), str(step))
    assert manifest.find_damage(step) == []
    assert model_config(step) == settings({}).model
    back = tmp_path / "back"
    assert convert.convert(str(step), str(back), "long_vita", layout="pp=2", platform="cpu") == 0
    same(load_all(back), load_all(source))
    with pytest.raises(CheckpointError, match="is there already and not empty"):
        convert.convert(str(source), str(back), "long_vita")
