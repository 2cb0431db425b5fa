"""`longvita plan`: the shipped recipes on their devices, search, table, JSON and page."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import load
from longvita.config.checks import replica_size
from longvita.planning.contents import worst_contents
from longvita.planning.memory import fits, plan_generation, plan_memory
from longvita.planning.search import nearest, search
from longvita.planning.throughput import step_time
from longvita.platforms.hardware import HARDWARE, PlanError, find_hardware, parse_bytes
from tests.conftest import REPOSITORY
from tests.tiny import tiny_config

TRAIN = REPOSITORY / "configs/train"
DEVICES = {
    "stage1_align": 8,
    "stage2_general": 8,
    "stage3_128k": 16,
    "stage4_1m": 64,
    "stage1_align_72b": 64,
    "stage2_general_72b": 64,
    "stage3_128k_72b": 128,
    "stage4_1m_72b": 512,
}
RECIPES = {name: (devices, find_hardware("h100-80")) for name, devices in DEVICES.items()}
RECIPES |= {f"{name}_ascend": (devices, find_hardware("ascend-910b-64")) for name, devices in DEVICES.items()}
RECIPES |= {f"stage4_1m_{devices}": (devices, find_hardware("h100-80", "96GB")) for devices in (8, 16)}
MODEL = {"language": {"num_layers": 4, "num_attention_heads": 8, "num_query_groups": 4}}


def test_every_recipe_is_planned():
    assert {path.stem for path in TRAIN.glob("*.yaml")} - {"common"} == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_devices(name):
    devices, hardware = RECIPES[name]
    stages = plan_memory(load(TRAIN / f"{name}.yaml"), devices, hardware)
    assert fits(stages, hardware), [stage.total / 2**30 for stage in stages]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/inference").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_that_answers_fits(path):
    config = load(path)
    (stage,) = plan_generation(config)
    assert fits([stage], HARDWARE["h100-80"])
    language = config.model.language
    groups = language.num_query_groups // config.layout.tensor_parallel
    assert stage.kv_cache == 2 * language.num_layers * groups * language.head_dim * 2 * config.inference.max_seq_len
    assert stage.gradients == stage.optimizer == 0


@pytest.mark.parametrize("devices, offload", [(16, False), (8, True)])
def test_search_finds_the_long_recipes(devices, offload):
    hardware = find_hardware("h100-80", "96GB")
    found = search(load(TRAIN / "stage4_1m.yaml"), devices, hardware)
    recipe = load(TRAIN / f"stage4_1m_{devices}.yaml")
    same = [one for one in found if one.config.layout == recipe.layout.model_copy(update={"processes": None})]
    assert len(same) == 1 and same[0].config.training.recompute.offload == offload
    assert same[0].config.training == recipe.training
    assert same[0].time.seconds < 1.02 * found[0].time.seconds
    assert [one.time.seconds for one in found] == sorted(one.time.seconds for one in found)


def test_search_knows_when_nothing_fits():
    assert search(load(TRAIN / "stage2_general.yaml"), 8, find_hardware("h100-80", "24GiB")) == []


def small(**sections):
    data = {"dataset": {"words": {"data_paths": ["words.jsonl"]}}, "max_num_frames": 16, "max_num_tiles": 4}
    inference = {"max_seq_len": 512, "max_num_frames": 16, "max_new_tokens": 8}
    return tiny_config(model=MODEL, data=data, inference=inference, **sections)


def test_candidates_keep_the_batch_and_load_again(tmp_path):
    config = small(training={"global_batch_size": 16})
    found = search(config, 8, HARDWARE["h100-80"])
    assert found
    base = tmp_path / "base.yaml"
    base.write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    for candidate in found:
        again = load(base, candidate.overrides)
        assert again.layout == candidate.config.layout and again.training == candidate.config.training
        assert 8 % replica_size(again) == 0
    first = nearest(found[-1].config, found)[0]
    assert first.config.layout == found[-1].config.layout


def seconds(config, devices, hardware="h100-80"):
    device, contents = HARDWARE[hardware], worst_contents(config)[0]
    return step_time(config, devices, device, plan_memory(config, devices, device), contents)


def test_times_follow_layout_and_recomputation():
    config = load(TRAIN / "stage4_1m.yaml")
    base = seconds(config, 64)
    assert base.seconds == pytest.approx(8 * seconds(load(TRAIN / "stage4_1m_8.yaml"), 8).seconds / 64, rel=0.15)
    plain = load(TRAIN / "stage4_1m.yaml", ["training.recompute.granularity=none"])
    assert seconds(plain, 64).seconds < base.seconds
    assert seconds(config, 64, "a100-80").seconds > base.seconds
    assert 0 < base.mfu < 1
    pipelined = seconds(load(TRAIN / "stage3_128k_72b.yaml"), 128)
    assert pipelined.pipeline_bubble > 0 and base.pipeline_bubble == 0


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_the_command_prints_writes_and_judges(tmp_path):
    page = tmp_path / "plan.html"
    result = run(TRAIN / "stage4_1m.yaml", "--devices", "64", "--memory", "96GiB", "--html", page)
    assert result.exit_code == 0 and "It fits" in result.output
    text = page.read_text()
    assert text.count("<svg") == 2 and "layer inputs" in text and "http" not in text


def test_what_does_not_fit_gets_the_nearest_layouts_that_do(tmp_path):
    config = small(training={"global_batch_size": 16})
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    (stage,) = plan_memory(config, 4, HARDWARE["h100-80"])
    memory = f"{(stage.total - 2**18) / 2**20}MiB"
    result = run(path, "--devices", "4", "--memory", memory, "--json")
    data = json.loads(result.output)
    assert result.exit_code == 1 and not data["fits"] and data["layouts"]
    text = run(path, "--devices", "4", "--memory", memory).output
    assert "does not fit" in text and "layout.tensor_parallel=" in text
    assert "No layout" in run(path, "--devices", "4", "--memory", "3GiB").output


def test_json_holds_the_plan():
    result = run(TRAIN / "stage4_1m.yaml", "--devices", "8", "--memory", "96GB", "--search", "--json")
    data = json.loads(result.output)
    assert result.exit_code == 0 and data["memory"] == 96 * 10**9 and not data["fits"]
    assert 1 <= len(data["layouts"]) <= 10 and "layout.context_parallel" in " ".join(data["layouts"][0]["overrides"])


def test_contents_can_be_given():
    whole = json.loads(run(TRAIN / "stage4_1m.yaml", "--devices", "64", "--json").output)["stages"][0]
    few = ["--devices", "64", "--json", "--tiles", "100", "--loss-tokens", "1000", "--documents", "4"]
    stage = json.loads(run(TRAIN / "stage4_1m.yaml", *few).output)["stages"][0]
    assert stage["contents"] == "as given" and stage["vision_features"] < whole["vision_features"]
    refused = run(TRAIN / "stage4_1m.yaml", "--tiles", "5000")
    assert isinstance(refused.exception, PlanError) and "4064" in str(refused.exception)


@pytest.mark.parametrize("text", ["96", "GiB", "96 apples"])
def test_memory_needs_a_unit(text):
    with pytest.raises(PlanError, match="96GiB"):
        parse_bytes(text)
    assert parse_bytes("1.5 GiB") == 3 << 29 and parse_bytes("80gb") == 80 * 10**9


def test_hardware_must_be_known():
    with pytest.raises(PlanError, match="h100-80"):
        find_hardware("abacus")
    assert all(dataclasses.is_dataclass(one) and one.usable() > 0 for one in HARDWARE.values())
