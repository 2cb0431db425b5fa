"""Sizes that do not fit each other, each with its fields, their sources and the fix."""

from __future__ import annotations

import pytest

from longvita.config import ConfigError, check_world_size, load
from longvita.config.sizes import frames_that_fit, layers_per_stage, replica_size

CASES = {
    "heads over TP": (
        ["layout.tensor_parallel=16"],
        "layout.tensor_parallel = 16: does not divide the model's num_attention_heads, num_query_groups",
        "tensor_parallel of 1, 2, 4, 8",
    ),
    "query groups over TP": (
        ["layout.tensor_parallel=5", "model.language.vocab_size=152065", "model.language.ffn_hidden_size=13825"],
        "does not divide the model's num_query_groups:",
        "tensor_parallel of 1",
    ),
    "vocabulary over TP": (["layout.tensor_parallel=8", "model.language.vocab_size=152065"], "vocab_size", "of 1"),
    "FFN over TP": (["layout.tensor_parallel=4", "model.language.ffn_hidden_size=13822"], "ffn_hidden_size", "of 1, 2"),
    "layers over PP": (
        ["layout.pipeline_parallel=7"],
        "the layers do not fit the stages: 48 layers over 7 stages",
        "pipeline_parallel of 1, 2, 3, 4, 6, 8",
    ),
    "first stage leaves a rest": (
        ["layout.pipeline_parallel=4", "layout.num_layers_in_first_pipeline_stage=10"],
        "38 layers left for 3 stages",
        "first and last stage sizes",
    ),
    "first and last stage leave layers over": (
        [
            "layout.pipeline_parallel=2",
            "layout.num_layers_in_first_pipeline_stage=20",
            "layout.num_layers_in_last_pipeline_stage=20",
        ],
        "8 layers left for 0 stages",
        "first and last stage sizes",
    ),
    "first stage without a pipeline": (
        ["layout.num_layers_in_first_pipeline_stage=10"],
        "requires pipeline parallelism",
        "remove layout.num_layers_in_first_pipeline_stage",
    ),
    "virtual stages without a pipeline": (
        ["layout.virtual_pipeline=2"],
        "layout.virtual_pipeline = 2: requires pipeline parallelism",
        "layout.virtual_pipeline=1",
    ),
    "virtual stages over layers": (
        ["layout.pipeline_parallel=2", "layout.virtual_pipeline=5"],
        "does not divide the 24 layers of a stage",
        "virtual_pipeline of 1, 2, 3, 4, 6, 8, 12, 24",
    ),
    "heads over Ulysses": (
        ["layout.context_parallel=12", "layout.ulysses=4", "layout.tensor_parallel=4", "data.sequence_length=16392"],
        "layout.ulysses = 4: does not divide the 10 heads of a TP rank",
        "ulysses of 1, 2",
    ),
    "CP over Ulysses": (
        ["layout.context_parallel=2", "layout.ulysses=4"],
        "layout.ulysses = 4: does not divide the 2 context-parallel ranks",
        "ulysses of 1, 2",
    ),
    "sequence over 2 x CP": (
        ["layout.context_parallel=4", "data.sequence_length=16388"],
        "is not a multiple of 8 = 2 x CP",
        "sequence_length=16384 or 16392",
    ),
    "sequence over 2 x CP x TP": (
        ["layout.context_parallel=2", "layout.tensor_parallel=8", "layout.sequence_parallel=true"]
        + ["data.sequence_length=16388"],
        "is not a multiple of 32 = 2 x CP x TP (sequence parallel)",
        "sequence_length=16384 or 16416",
    ),
    "sequence over TP": (
        ["layout.tensor_parallel=8", "layout.sequence_parallel=true", "data.sequence_length=16390"],
        "is not a multiple of 8 = TP (sequence parallel)",
        "sequence_length=16384 or 16392",
    ),
    "SP without TP": (
        ["layout.sequence_parallel=true"],
        "requires tensor parallelism",
        "layout.sequence_parallel=false",
    ),
    "sequence beyond the positions": (
        ["data.sequence_length=2097152"],
        "is longer than the model accepts",
        "at most 1310720",
    ),
    "vision heads": (["model.vision.num_attention_heads=15"], "does not divide the hidden size", "of 1, 2, 4, 8, 16"),
    "language heads": (["model.language.num_attention_heads=48"], "does not divide the hidden size", "of 1, 2, 4"),
    "odd heads": (
        ["model.language.hidden_size=45", "model.language.num_attention_heads=15", "model.language.num_query_groups=5"],
        "gives heads of odd width 3",
        "another head count",
    ),
    "query groups over heads": (
        ["model.language.num_query_groups=7"],
        "does not divide the attention heads",
        "num_query_groups of 1, 2, 4, 5, 8, 10, 20, 40",
    ),
    "patches": (["model.vision.image_size=450"], "is not a multiple of the patch size", "image_size=448 or 462"),
    "pixel shuffle": (
        ["model.projector.downsample=3"],
        "does not divide the 32 patches along a tile's side",
        "downsample of 1, 2, 4, 8, 16, 32",
    ),
    "frames": (
        ["data.max_num_frames=64"],
        "64 frames do not fit the sequence: 258 tokens each with their markers, so at most 63 fit",
        "data.max_num_frames=63 or a longer data.sequence_length",
    ),
    "tiles": (
        ["data.max_num_tiles=12", "data.sequence_length=2048", "data.max_num_frames=7"],
        "12 tiles and a thumbnail do not fit the sequence: 258 tokens each with their markers, so at most 6 fit",
        "data.max_num_tiles=6",
    ),
    "not even one tile": (
        ["data.max_num_tiles=1", "data.sequence_length=256", "data.max_num_frames=1"],
        "at most 0 fit",
        "a longer sequence",
    ),
    "inference length": (["inference.max_seq_len=1310721"], "is longer than the model accepts", "at most 1310720"),
    "inference frames": (
        ["inference.max_seq_len=131072", "inference.max_num_frames=512"],
        "512 frames do not fit: 258 tokens each with their markers, so at most 508 fit",
        "inference.max_num_frames=508",
    ),
    "inference answer": (
        ["inference.max_seq_len=1024", "inference.max_num_frames=3"],
        "inference.max_new_tokens = 1024: leaves no room for a prompt",
        "less than 1024",
    ),
    "micro batches": (
        ["training.micro_batch_size=3"],
        "training.global_batch_size = 512: is not a multiple of micro batch x DP = 3 x 1",
        "global_batch_size=510 or 513",
    ),
    "processes over a replica": (
        ["layout.tensor_parallel=4", "layout.processes=6"],
        "6 processes are not a multiple of a model replica's 4 = TP x PP x CP",
        "start 4 or 8 processes",
    ),
    "batch over DP": (
        ["layout.processes=3"],
        "training.global_batch_size = 512: is not a multiple of micro batch x DP = 1 x 3",
        "global_batch_size=510 or 513",
    ),
    "interleaved schedule": (
        [
            "layout.pipeline_parallel=4",
            "layout.virtual_pipeline=2",
            "layout.processes=4",
            "training.global_batch_size=6",
        ],
        "x PP = 4 for the interleaved schedule",
        "global_batch_size=4 or 8",
    ),
    "interleaved schedule at any size": (
        ["layout.pipeline_parallel=4", "layout.virtual_pipeline=2", "training.global_batch_size=6"],
        "x PP = 4 for the interleaved schedule",
        "global_batch_size=4 or 8",
    ),
    "rates": (["optimizer.min_lr=1e-4"], "is above the highest learning rate", "at most 1e-05"),
    "parts twice": (["training.trainable=[vision, vision]"], "names a part twice", "each part once"),
    "recompute": (
        ["training.recompute={granularity: full, num_layers: 30}", "layout.pipeline_parallel=2"],
        "training.recompute.num_layers = 30: is more than the 24 layers of a stage",
        "at most 24",
    ),
    "offload without recomputation": (
        ["training.recompute.offload=true"],
        "training.recompute.offload = true: offloads the inputs of recomputed layers, but some layers are not",
        "training.recompute.granularity=full and training.recompute.method=uniform",
    ),
    "offload of some layers": (
        ["training.recompute={granularity: full, method: block, num_layers: 2, offload: true}"],
        "but some layers are not recomputed",
        "training.recompute.method=uniform",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(write_yaml, case):
    overrides, words, fix = CASES[case]
    with pytest.raises(ConfigError) as caught:
        load(write_yaml("name: x"), overrides)
    text = str(caught.value)
    assert words in text
    assert fix in text


def test_related_fields_carry_value_and_place(write_yaml):
    model = write_yaml("model:\n  language:\n    num_attention_heads: 40\n    num_query_groups: 8\n", "model.yaml")
    path = write_yaml("include: model.yaml\nlayout:\n  tensor_parallel: 16\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:3: layout.tensor_parallel = 16: ")
    assert f"    model.language.num_attention_heads = 40 ({model}:3)" in lines
    assert f"    model.language.num_query_groups = 8 ({model}:4)" in lines


def test_several_at_once(write_yaml):
    with pytest.raises(ConfigError) as caught:
        load(write_yaml(""), ["layout.tensor_parallel=16", "layout.pipeline_parallel=7", "optimizer.min_lr=1.0"])
    assert len(caught.value.problems) == 3


def test_frames_that_fit():
    lengths = (16384, 32768, 131072, 1048576)
    assert [frames_that_fit(length, 256) for length in lengths] == [63, 127, 508, 4064]
    assert frames_that_fit(16384, 256, text_tokens=200) == 62
    assert frames_that_fit(100, 256) == 0


@pytest.mark.parametrize(
    "overrides, stages",
    [
        (["layout.pipeline_parallel=4"], [12, 12, 12, 12]),
        (["layout.pipeline_parallel=4", "layout.num_layers_in_first_pipeline_stage=9"], [9, 13, 13, 13]),
        (["layout.pipeline_parallel=2", "layout.num_layers_in_last_pipeline_stage=20"], [28, 20]),
        (
            ["layout.pipeline_parallel=2", "layout.num_layers_in_first_pipeline_stage=22"]
            + ["layout.num_layers_in_last_pipeline_stage=26"],
            [22, 26],
        ),
    ],
)
def test_layers_per_stage(write_yaml, overrides, stages):
    assert layers_per_stage(load(write_yaml(""), overrides)) == stages


def test_world_size(write_yaml):
    path = write_yaml("")
    config = load(path, ["layout.tensor_parallel=2", "layout.pipeline_parallel=2", "training.global_batch_size=12"])
    assert replica_size(config) == 4
    assert check_world_size(config, 8) == 2
    with pytest.raises(ConfigError, match="6 processes are not a multiple of a model replica's 4"):
        check_world_size(config, 6)
    with pytest.raises(ConfigError, match="micro batch x DP = 1 x 5"):
        check_world_size(config, 20)
