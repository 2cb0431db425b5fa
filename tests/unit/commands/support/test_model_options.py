"""Settings of a generation run: where they come from, and what is refused before any weight is read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from longvita.checkpoint.hf.media_limits import write_media_limits
from longvita.commands.support.model_options import engine_settings
from longvita.commands.support.options import EvaluationRequest, ModelOptions
from longvita.config import dump
from longvita.config.schema import Config, DataConfig, LanguageConfig, LayoutConfig, ModelConfig
from longvita.errors import UserError
from longvita.inference.default_layout import default_layout, language_parameters
from longvita.inference.settings import EngineSettings

LARGE = {
    "num_layers": 80, "hidden_size": 8192, "ffn_hidden_size": 29568, "num_attention_heads": 64, "num_query_groups": 8,
}  # fmt: skip


def model(**language: int) -> ModelConfig:
    return ModelConfig.model_validate({"language": language})


@pytest.mark.parametrize(
    ("processes", "language", "tensor_parallel", "context_parallel"),
    [
        (1, {}, 1, 1),
        (2, {}, 1, 2),
        (7, {}, 1, 7),
        (8, LARGE, 8, 1),
        (16, LARGE, 8, 2),
        (12, LARGE, 4, 3),  # heads divide into no more
    ],
)
def test_the_input_is_spread_and_weights_too_where_they_are_large(
    processes: int, language: dict[str, int], tensor_parallel: int, context_parallel: int
) -> None:
    layout = default_layout(model(**language), processes)
    assert (layout.tensor_parallel, layout.context_parallel) == (tensor_parallel, context_parallel)


def test_weights_are_counted_as_published() -> None:
    assert language_parameters(LanguageConfig()) == pytest.approx(14.77e9, rel=1e-3)
    assert language_parameters(LanguageConfig(**LARGE)) == pytest.approx(72.7e9, rel=1e-3)


@pytest.fixture
def folder(golden: Path) -> str:
    return str(golden / "model")


def test_a_model_folder_gives_sizes_and_tokenizer(folder: str) -> None:
    settings = engine_settings(folder, ModelOptions(), None)
    assert settings.config.model.language.hidden_size == 64
    assert settings.tokenizer == folder
    assert settings.config.layout == LayoutConfig()
    assert settings.config.inference.max_seq_len == 16384


def test_options_go_before_the_config_file(folder: str, write_yaml) -> None:
    path = write_yaml(
        "layout: {tensor_parallel: 2}\n"
        "inference: {max_seq_len: 1000, max_num_frames: 3, temperature: 0.5, max_new_tokens: 10}\n"
    )
    options = ModelOptions(config=str(path), max_seq_len=1_310_720, top_k=5, seed=9)
    settings = engine_settings(folder, options, 2)
    inference = settings.config.inference
    assert (inference.max_seq_len, inference.max_num_frames, inference.temperature, inference.top_k) == (
        1_310_720,
        3,
        0.5,
        5,
    )
    assert settings.config.layout.tensor_parallel == 2
    assert settings.config.seed == 9
    options = ModelOptions(config=str(path), layout="pp=2")
    assert engine_settings(folder, options, 2).config.layout.pipeline_parallel == 2


def test_pictures_are_cut_as_in_training(folder: str, tmp_path: Path, write_yaml) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained)
    write_media_limits(trained, DataConfig(max_num_tiles=4, max_num_frames=330, max_fps=2.0))
    data = engine_settings(str(trained), ModelOptions(), None).config.data
    assert (data.max_num_tiles, data.max_num_frames, data.max_fps) == (4, 330, 2.0)
    # A config file changes what it names and no more.
    data = engine_settings(str(trained), ModelOptions(config=str(write_yaml("data: {max_fps: 0.5}"))), None).config.data
    assert (data.max_num_tiles, data.max_num_frames, data.max_fps) == (4, 330, 0.5)


def test_impossible_media_limits_are_refused(folder: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    path = damaged / "config.json"
    for said in ({"max_num_tiles": 0}, [1]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"media_limits": said}))
        with pytest.raises(UserError, match=r"config.json: media_limits is .*, which no data section may hold"):
            engine_settings(str(damaged), ModelOptions(), None)


def test_settings_travel_as_plain_data(folder: str) -> None:
    settings = engine_settings(folder, ModelOptions(layout="tp=2,sp=true"), None)
    assert EngineSettings.from_payload(settings.payload()) == settings


def test_a_training_checkpoint_brings_its_config(tmp_path: Path) -> None:
    small = {"language": {"max_position_embeddings": 512, "num_layers": 2}}
    saved = Config.model_validate({"model": small, "data": {"tokenizer": "words", "max_fps": 2.0}})
    step = tmp_path / "step_00000005"
    step.mkdir()
    (step / "config.json").write_text(json.dumps(dump(saved)))
    for place in (tmp_path, step):
        (step / "manifest.json").write_text("{}")
        settings = engine_settings(str(place), ModelOptions(), None)
        assert settings.tokenizer == "words"
        assert settings.config.data.max_fps == 2.0
        # The default of 16,384 tokens is held to what the model can take.
        assert settings.config.inference.max_seq_len == 512
    assert engine_settings(str(step), ModelOptions(tokenizer="other"), None).tokenizer == "other"


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        (ModelOptions(max_seq_len=1_310_721), None, "--max-seq-len is 1310721, but the model has 1310720 positions"),
        (ModelOptions(layout="tp=3"), None, "layout.tensor_parallel=3 does not divide"),
        (ModelOptions(layout="tp=2"), 4, "takes 2 processes .* 4 were started"),
        (ModelOptions(layout="cp=2"), 4, r"takes 2 processes \(tp=1, pp=1, cp=2\), but 4 were started"),
        (ModelOptions(layout="vp=2,pp=2"), None, "layout.virtual_pipeline is 2, but generation needs 1"),
    ],
)
def test_what_does_not_fit_is_refused(folder: str, options: ModelOptions, processes: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine_settings(folder, options, processes)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is neither a folder nor a Hub id"):
        engine_settings(str(tmp_path / "nothing"), ModelOptions(), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layout": "two"}, "--layout: 'two' is not valid"),
        ({"temperature": -1.0}, r"--temperature is -1.0, but must be 0 \(greedy\) or at least 0.0001"),
        ({"temperature": 1e-40}, "--temperature is 1e-40, but must be 0"),
        ({"temperature": 9e-5}, "--temperature is 9e-05, but must be 0"),
        ({"temperature": math.inf}, "--temperature is inf, but must be"),
        ({"temperature": math.nan}, "--temperature is nan, but must be"),
        ({"top_p": 0.0}, "--top-p is 0.0, but must be greater than 0"),
        ({"top_k": -1}, "--top-k is -1, but must be"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0, but must be"),
        ({"max_seq_len": 0}, "--max-seq-len is 0, but must be"),
        ({"max_num_frames": 0}, "--max-num-frames is 0, but must be"),
        ({"prefill_chunk_size": 0}, "--prefill-chunk-size is 0, but must be"),
        ({"seed": -1}, "--seed is -1, but must be greater than or equal to 0"),
        ({"seed": 2**64}, f"--seed is {2**64}, but must be less than {2**64}"),
        ({"config": "no.yaml"}, "--config no.yaml is not a file"),
    ],
)
def test_values_that_no_model_can_use_are_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelOptions(**values)


def test_the_ends_of_the_ranges_are_allowed(folder: str) -> None:
    settings = engine_settings(folder, ModelOptions(seed=2**64 - 1, temperature=1e-4), None)
    assert (settings.config.seed, settings.config.inference.temperature) == (2**64 - 1, 1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "no"}, "--data no is not a folder"),
        ({"replicas": 0}, "--replicas is 0, but must be at least 1"),
        ({"lengths": "4,x"}, "--lengths is '4,x'; give numbers with commas"),
        ({"lengths": "4,0"}, "--lengths is 4,0; a film has at least 1 frame"),
        ({"depths": "0,1.5"}, "--depths is 0,1.5; depths are from 0 to 1"),
    ],
)
def test_a_request_that_no_data_set_can_answer_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationRequest(**({"task": "needle", "data": ".", "output": "out"} | values))


def test_precision_is_one_of_three() -> None:
    assert ModelOptions(precision="fp32").precision == "fp32"
    with pytest.raises(UserError, match="--precision is 'fp8'; choose auto, bf16 or fp32"):
        ModelOptions(precision="fp8")
