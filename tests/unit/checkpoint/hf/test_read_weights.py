"""A Hugging Face folder checked against a model, and the values of our parameters from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import internvl_settings, long_vita_settings
from longvita.checkpoint.hf.read_weights import SourceFolder
from longvita.checkpoint.hf.tensor_map import PARTS, hf_tensors
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA, FormatNames
from longvita.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig

MODEL = ModelConfig(
    vision=VisionConfig(num_layers=1, hidden_size=8, num_attention_heads=2, ffn_hidden_size=12, image_size=28),
    projector=ProjectorConfig(hidden_size=10),
    language=LanguageConfig(
        num_layers=2,
        hidden_size=16,
        ffn_hidden_size=24,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=400,
        max_position_embeddings=512,
    ),
)
DOWN = "model.layers.1.mlp.down_proj.weight"


def random_tensors(names: FormatNames, model: ModelConfig = MODEL) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        tensor.name: torch.zeros(tensor.shape) if tensor.padded else torch.randn(tensor.shape, generator=generator)
        for tensor in hf_tensors(model, names)
    }


def write(folder: Path, tensors: dict[str, Tensor], settings: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings or long_vita_settings(MODEL, "float32")))
    return folder


def parameter(source: SourceFolder, name: str) -> Tensor:
    item = source.mapper().map(name)
    out = torch.empty(item.shape)
    source.fill(item, out)
    return out


def test_a_missing_and_an_unexpected_tensor_are_listed(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    del tensors[DOWN], tensors["model.vision_projection.mlp.2.weight"]
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(16, 24)
    tensors["score.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        SourceFolder(write(tmp_path, tensors), MODEL)
    text = str(caught.value)
    assert f"Missing tensors: {DOWN}, model.vision_projection.mlp.2.weight." in text
    assert "Unexpected tensors: model.layers.2.mlp.down_proj.weight, score.weight." in text


def test_long_lists_are_cut_and_counted(tmp_path: Path):
    tensors = {name: tensor for name, tensor in random_tensors(LONG_VITA).items() if ".layers.1." not in name}
    with pytest.raises(CheckpointError, match=r"Missing tensors: .*and 4 more\."):
        SourceFolder(write(tmp_path, tensors), MODEL)


def test_computed_buffers_and_other_parts_are_left_alone(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    complete = SourceFolder(write(tmp_path / "complete", tensors), MODEL)
    tensors["score.weight"] = torch.zeros(1)
    language = SourceFolder(write(tmp_path / "more", tensors), MODEL, parts=("language",))
    for source in (complete, language):
        assert torch.equal(parameter(source, "language_model.decoder.layers.1.mlp.linear_fc2.weight"), tensors[DOWN])


def test_a_wrong_shape_is_reported_with_both_shapes(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    tensors[DOWN] = torch.zeros(16, 23)
    source = SourceFolder(write(tmp_path, tensors), MODEL)
    with pytest.raises(CheckpointError, match=rf"{DOWN} is \(16, 23\) in .* needs \(16, 24\)"):
        parameter(source, "language_model.decoder.layers.1.mlp.linear_fc2.weight")


def test_a_part_that_is_not_there_is_named(tmp_path: Path):
    tensors = {name: value for name, value in random_tensors(LONG_VITA).items() if "vision" not in name}
    folder = write(tmp_path, tensors)
    SourceFolder(folder, MODEL, parts=("language",))
    with pytest.raises(CheckpointError, match="has no vision weights"):
        SourceFolder(folder, MODEL)
    with pytest.raises(CheckpointError, match="choose among vision, projector, language"):
        SourceFolder(folder, MODEL, parts=("audio",))


def test_missing_vocabulary_rows_are_filled_with_the_mean(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:390]
    source = SourceFolder(write(tmp_path, tensors), MODEL)
    found = parameter(source, "language_model.embedding.word_embeddings.weight")
    rows = tensors["model.embed_tokens.weight"]
    assert torch.equal(found[:390], rows)
    torch.testing.assert_close(found[390:], rows.mean(0).expand(10, -1))


def test_more_vocabulary_rows_than_the_model_has_are_refused(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    tensors["model.embed_tokens.weight"] = torch.zeros(401, 16)
    with pytest.raises(CheckpointError, match=r"401 rows and model.language.vocab_size is 400"):
        SourceFolder(write(tmp_path, tensors), MODEL)


def test_a_tied_folder_fills_both_embeddings_of_an_untied_model(tmp_path: Path):
    tensors = random_tensors(LONG_VITA)
    del tensors["lm_head.weight"]
    settings = long_vita_settings(MODEL, "float32")
    with pytest.raises(CheckpointError, match=r"Missing tensors: lm_head.weight"):
        SourceFolder(write(tmp_path / "untied", tensors, settings), MODEL)
    source = SourceFolder(write(tmp_path / "tied", tensors, {**settings, "tie_word_embeddings": True}), MODEL)
    assert torch.equal(parameter(source, "language_model.output_layer.weight"), tensors["model.embed_tokens.weight"])


def test_a_tied_model_refuses_another_output_layer(tmp_path: Path):
    tied = MODEL.model_copy(update={"language": MODEL.language.model_copy(update={"tie_word_embeddings": True})})
    tensors = random_tensors(LONG_VITA)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        SourceFolder(write(tmp_path / "different", tensors), tied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    SourceFolder(write(tmp_path / "equal", tensors), tied)


def internvl_folder(folder: Path, change: dict[str, Tensor]) -> Path:
    tensors = random_tensors(INTERNVL)
    generator = torch.Generator().manual_seed(4)
    tensors["multi_modal_projector.linear_1.weight"][:10] = torch.randn(10, 32, generator=generator)
    tensors["multi_modal_projector.linear_2.weight"][:, :10] = torch.randn(16, 10, generator=generator)
    return write(folder, tensors | change, internvl_settings(MODEL, "float32", 5))


def test_the_internvl_projector_is_reduced_to_its_own_width(tmp_path: Path):
    source = SourceFolder(internvl_folder(tmp_path, {}), MODEL)
    tensors = load_file(tmp_path / "model.safetensors")
    first = parameter(source, "vision_projection.linear_fc1.weight")
    assert torch.equal(first, tensors["multi_modal_projector.linear_1.weight"][:10])
    second = parameter(source, "vision_projection.linear_fc2.weight")
    assert torch.equal(second, tensors["multi_modal_projector.linear_2.weight"][:, :10])


def test_values_in_the_padding_of_the_internvl_projector_are_refused(tmp_path: Path):
    folder = internvl_folder(tmp_path, {"multi_modal_projector.linear_1.weight": torch.ones(16, 32)})
    with pytest.raises(CheckpointError, match=r"linear_1.weight \(16, 32\) has values beyond 10 .*hidden_size to 16"):
        parameter(SourceFolder(folder, MODEL), "vision_projection.linear_fc1.weight")


def test_biases_of_the_internvl_projector_are_refused(tmp_path: Path):
    folder = internvl_folder(tmp_path, {"multi_modal_projector.linear_2.bias": torch.ones(16)})
    with pytest.raises(CheckpointError, match=r"linear_2.bias is not zero"):
        SourceFolder(folder, MODEL)


def test_parts_are_all_of_a_model():
    assert {tensor.part for tensor in hf_tensors(MODEL, LONG_VITA)} == set(PARTS)
