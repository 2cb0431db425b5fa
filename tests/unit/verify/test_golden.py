"""Reading golden vectors, and the short form of a layout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import model_config_from_folder
from longvita.config.layout_text import LayoutError, layout_text, parse_layout
from longvita.config.schema import LayoutConfig, ModelConfig
from longvita.verify.golden import golden_config, load_golden

FIRST_OF_TWO = SimpleNamespace(vision_size=2, vision_rank=0, is_first_stage=True)


def small(folder: Path, **changes: torch.Tensor) -> Path:
    """Two rows of five tokens, a tile of two tokens in each."""
    tensors = {
        "input_ids": torch.arange(10).reshape(2, 5),
        "labels": torch.tensor([[-100, 1, 2, 3, 4], [-100, -100, 7, 8, -100]]),
        "images": torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous(),
        "image_indices": torch.tensor([[[0, 0], [1, 1]], [[1, 2], [0, 1]]]),
        **changes,
    }
    save_file(tensors, folder / "golden.safetensors")
    return folder


def test_the_golden_folder_of_the_project(golden: Path):
    found = load_golden(golden / "model")
    tensors = load_file(golden / "model" / "golden.safetensors")
    assert (found.rows, found.length) == (1, 96)
    assert found.tile_starts.tolist() == tensors["image_indices"][1, :, 0].tolist()
    assert torch.equal(found.labels[:-1], tensors["labels"][0, 1:])
    assert found.labels[-1] == -100
    assert len(found.greedy_tokens) == 12
    assert len(found.gradients) == 6
    assert found.loss == pytest.approx(6.285789966583252)


def test_rows_become_documents_and_labels_are_shifted_within_them(tmp_path: Path):
    found = load_golden(small(tmp_path))
    assert found.tile_starts.tolist() == [1, 5]
    assert found.labels.tolist() == [1, 2, 3, 4, -100, -100, 7, 8, -100, -100]
    batch = found.batch(FIRST_OF_TWO, multiple=4)
    assert batch.cu_seqlens.tolist() == [0, 5, 10, 12]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert batch.labels[0, 10:].tolist() == [-100, -100]
    assert (batch.padding_tokens, batch.document_sources) == (2, ["golden", "golden", ""])
    assert batch.tiles[:, 0, 0, 0].tolist() == [0.0], "the other tile is the other rank's"
    assert len(found.batch(SimpleNamespace(vision_size=2, vision_rank=1, is_first_stage=False)).tiles) == 0


def test_outputs_that_are_not_there_are_none(tmp_path: Path):
    found = load_golden(small(tmp_path))
    assert (found.features, found.logits, found.loss, found.greedy_tokens, found.gradients) == (None,) * 4 + ({},)


@pytest.mark.parametrize(
    "indices", [[[[0, 0], [1, 1]], [[1, 3], [0, 1]]], [[[1, 1], [0, 0]], [[0, 1], [1, 2]]]], ids=["gap", "order"]
)
def test_tiles_that_are_not_runs_in_order_are_refused(tmp_path: Path, indices: list):
    with pytest.raises(CheckpointError, match="image_indices is not runs of consecutive positions"):
        load_golden(small(tmp_path, image_indices=torch.tensor(indices)))


def test_absent_and_damaged_vectors_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"golden.safetensors is not there"):
        load_golden(tmp_path)
    path = small(tmp_path) / "golden.safetensors"
    tensors = load_file(path)
    del tensors["labels"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="lacks labels"):
        load_golden(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_golden(tmp_path)


def test_the_config_of_a_comparison(golden: Path):
    layout = LayoutConfig(pipeline_parallel=2, virtual_pipeline=2)
    config = golden_config(model_config_from_folder(golden / "model"), layout, load_golden(golden / "model"), "cpu")
    assert config.training.precision == "fp32"
    assert config.training.global_batch_size == 2, "the interleaved schedule needs a multiple of PP micro batches"
    assert config.inference.max_seq_len == 96 + 12 + 1
    assert config.inference.prefill_chunk_size < 96


@pytest.mark.parametrize(
    "text, layout, back",
    [
        ("", LayoutConfig(), "tp=1"),
        ("tp=1", LayoutConfig(), "tp=1"),
        ("pp=2", LayoutConfig(pipeline_parallel=2), "tp=1,pp=2"),
        (
            " TP=2, pp=4,sp=true,cp=8 ",
            LayoutConfig(tensor_parallel=2, pipeline_parallel=4, context_parallel=8, sequence_parallel=True),
            "tp=2,pp=4,cp=8,sp=true",
        ),
        ("pp=2,vp=3,sp=false", LayoutConfig(pipeline_parallel=2, virtual_pipeline=3), "tp=1,pp=2,vp=3"),
    ],
)
def test_short_form_of_layouts(text: str, layout: LayoutConfig, back: str):
    assert parse_layout(text) == layout
    assert layout_text(layout) == back
    assert parse_layout(back) == layout


@pytest.mark.parametrize("text", ["tp", "tp=0", "tp=-1", "tp=two", "dp=2", "sp=1", "tp=2;pp=2"])
def test_layouts_that_cannot_be_parsed(text: str):
    with pytest.raises(LayoutError, match=r"--layout: .* is not valid"):
        parse_layout(text)


def test_vectors_of_another_model_are_refused(golden: Path, tmp_path: Path):
    with pytest.raises(
        CheckpointError, match=r"another model's \(pixels of a tile's side: 56 there, 448 here; .*512 there"
    ):
        golden_config(ModelConfig(), LayoutConfig(), load_golden(golden / "model"), "cpu")
    model = model_config_from_folder(golden / "model")
    with pytest.raises(CheckpointError, match="holds inputs alone"):
        golden_config(model, LayoutConfig(), load_golden(small(tmp_path)), "cpu")
