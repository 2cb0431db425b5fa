"""Every shipped file loads and validates, and the recipes hold the published figures."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from longvita.config import check_world_size, load
from longvita.config.sizes import frames_that_fit, replica_size

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
UNLIMITED = 999999999

# sequence, global batch, lr, lowest lr, iterations, trained parts, TP, CP, published frames, recomputed layers
RECIPES = {
    "stage1_align": (32768, 512, 1e-3, 1e-5, 1000, ["projector"], 8, 1, 128, 0),
    "stage2_general": (16384, 512, 1e-5, 1e-7, 7000, ["vision", "projector", "language"], 8, 1, 64, 0),
    "stage3_128k": (131072, 2, 5e-6, 1e-7, 1000, ["projector", "language"], 8, 2, 512, 20),
    "stage4_1m": (1048576, 8, 5e-6, 1e-7, 500, ["projector", "language"], 8, 8, 4096, 48),
}
ON_ASCEND = {"stage2_general": (540, 5000), "stage3_128k": (64, 1000)}
# (recomputed layers, whether the vision encoder is recomputed) of recipes that as published would not fit their devices
# by `longvita plan` (docs/plan.md). Recipes that need other values on devices of 64 GB have an `_ascend` file.
CORRECTED = {
    "stage1_align_72b_ascend": (5, False),
    "stage2_general_72b": (2, True),
    "stage2_general_72b_ascend": (6, True),
    "stage2_general_ascend": (0, True),
    "stage3_128k_ascend": (28, False),
}
DEVICES = {"stage1_align": 8, "stage2_general": 8, "stage3_128k": 16, "stage4_1m": 64}


@pytest.mark.parametrize("name", FILES)
def test_loads_and_validates(name):
    config = load(CONFIGS / name)
    assert config.model.tokens_per_tile > 0
    assert check_world_size(config, config.layout.processes or replica_size(config)) >= 1


def test_the_folders_are_there():
    assert {Path(name).parts[0] for name in FILES} >= {"model", "data", "layout", "train", "inference"}
    assert len(FILES) > 40


def test_a_recipe_of_its_own_for_ascend_corrects_the_plain_one():
    assert {path.stem for path in (CONFIGS / "train").glob("*_ascend.yaml")} < CORRECTED.keys()
    for name in CORRECTED:
        if name.endswith("_ascend"):
            own, plain = (load(CONFIGS / f"train/{one}.yaml") for one in (name, name.removesuffix("_ascend")))
            assert own.training.recompute != plain.training.recompute
            assert own.model_copy(update={"training": plain.training}) == plain


@pytest.mark.parametrize("ascend", [False, True])
@pytest.mark.parametrize("size", ["14b", "72b"])
@pytest.mark.parametrize("stage", RECIPES)
def test_recipe(stage, size, ascend):
    name = stage + ("_72b" if size == "72b" else "") + ("_ascend" if ascend else "")
    if ascend and name not in CORRECTED:
        assert not (CONFIGS / "train" / f"{name}.yaml").exists()
        return
    sequence, batch, lr, lowest, iterations, trained, tp, cp, frames, recomputed = RECIPES[stage]
    if ascend:
        batch, iterations = ON_ASCEND.get(stage, (batch, iterations))
    config = load(CONFIGS / "train" / f"{name}.yaml")
    training, optimizer, data = config.training, config.optimizer, config.data
    assert (data.sequence_length, training.global_batch_size, training.train_iterations) == (
        sequence,
        batch,
        iterations,
    )
    assert (optimizer.lr, optimizer.min_lr, optimizer.decay_style, optimizer.warmup_fraction) == (
        lr,
        lowest,
        "cosine",
        0.03,
    )
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.weight_decay, optimizer.clip_grad) == (
        0.9,
        0.999,
        0.0,
        1.0,
    )
    assert (training.micro_batch_size, training.precision, config.seed) == (1, "bf16", 42)
    assert training.trainable == trained
    assert config.model.init_method_std == 0.01
    assert (config.layout.tensor_parallel, config.layout.context_parallel) == (tp, cp)
    assert config.layout.sequence_parallel
    assert config.layout.pipeline_parallel == (8 if size == "72b" else 1)
    if size == "14b":
        assert replica_size(config) == DEVICES[stage]
    assert data.max_num_frames == min(frames, frames_that_fit(sequence, 256))
    assert data.isolate_documents == (stage in ("stage1_align", "stage2_general"))
    recomputed, vision = CORRECTED.get(name, (recomputed, False))
    assert training.recompute.vision == vision
    assert training.recompute.granularity == ("full" if recomputed else "none")
    if recomputed and (size == "14b" or name in CORRECTED):
        assert training.recompute.num_layers == recomputed


def test_stage_2_trains_the_vision_tower_gently():
    optimizer = load(CONFIGS / "train/stage2_general.yaml").optimizer
    assert (optimizer.vision_lr_mult, optimizer.vision_layer_decay) == (0.1, 0.9)


def test_stages_start_where_the_one_before_ended():
    for suffix in ("", "_72b"):
        outputs = [load(CONFIGS / f"train/{stage}{suffix}.yaml") for stage in RECIPES]
        for before, after in itertools.pairwise(outputs):
            assert after.checkpoint.initial == before.output
        assert outputs[0].checkpoint.initial_language
        assert outputs[0].checkpoint.initial_vision


def test_models():
    small = load(CONFIGS / "model/long_vita_14b.yaml").model
    large = load(CONFIGS / "model/long_vita_72b.yaml").model
    assert (small.language.num_layers, small.language.hidden_size, small.language.ffn_hidden_size) == (48, 5120, 13824)
    assert (large.language.num_layers, large.language.hidden_size, large.language.ffn_hidden_size) == (80, 8192, 29568)
    for model in (small, large):
        assert model.tokens_per_tile == 256
        assert model.language.head_dim == 128
        assert model.language.num_query_groups == 8
        assert (model.language.vocab_size, model.language.max_position_embeddings) == (152064, 1310720)
        assert model.vision.sequence_length == 1025


@pytest.mark.parametrize("size", ["14b", "72b"])
@pytest.mark.parametrize("version, length, frames", [("16k", 16384, 63), ("128k", 131072, 508), ("1m", 1048576, 4064)])
def test_inference(size, version, length, frames):
    config = load(CONFIGS / f"inference/long_vita_{size}_{version}.yaml")
    assert (config.inference.max_seq_len, config.inference.max_num_frames) == (length, frames)
    assert config.model.name == f"long_vita_{size}"


@pytest.mark.parametrize(
    "stage, shares",
    [
        (1, {"LLaVA": 0.0, "LLaVA-ReCap": 1.0, "the_cauldron": 0.0, "Movie": 0.0, "Comic-9K": 0.0}),
        (2, {"LLaVA": 0.0, "LLaVA-ReCap": 1.0, "the_cauldron": 1.0, "Movie": 0.0, "Comic-9K": 0.0}),
        (3, {"LLaVA": 0.0, "LLaVA-ReCap": 0.1, "the_cauldron": 0.1, "Movie": 0.0, "Comic-9K": 1.0}),
        (4, {"LLaVA": 0.0, "LLaVA-ReCap": 0.1, "the_cauldron": 0.1, "Movie": 1.0, "Comic-9K": 1.0}),
    ],
)
def test_mix(stage, shares):
    dataset = load(CONFIGS / f"data/stage{stage}.yaml").data.dataset
    assert {name: dataset[name].ratio for name in shares} == shares
    assert len(dataset) == 33
    assert sum(len(source.data_paths) for source in dataset.values()) == 197
    assert dataset["OpenHermes"].num == 300000
    assert dataset["MetaMathQA"].num == 100000
    assert dataset["LLaVA-ReCap"].num == UNLIMITED
