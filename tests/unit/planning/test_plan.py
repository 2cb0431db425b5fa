"""`longvita plan`: the shipped recipes on their devices, search, table, JSON and page."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import ConfigError, load
from longvita.config.sizes import replica_size
from longvita.planning.batch_contents import worst_contents
from longvita.planning.hardware import HARDWARE, PlanError, find_hardware, hardware_of, parse_bytes
from longvita.planning.memory import fits, plan_generation, plan_memory
from longvita.planning.search import nearest, search
from longvita.planning.throughput import step_time
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
ON_ASCEND = {name: name for name in DEVICES}
ON_ASCEND |= {path.stem.removesuffix("_ascend"): path.stem for path in TRAIN.glob("*_ascend.yaml")}
RECIPES |= {f"stage4_1m_{devices}": (devices, find_hardware("h100-80", "96GB")) for devices in (8, 16)}
MODEL = {"language": {"num_layers": 4, "num_attention_heads": 8, "num_query_groups": 4}}


def test_every_recipe_is_planned():
    assert {path.stem for path in TRAIN.glob("*.yaml")} - {"common"} == RECIPES.keys() | set(ON_ASCEND.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_devices(name):
    devices, hardware = RECIPES[name]
    stages = plan_memory(load(TRAIN / f"{name}.yaml"), devices, hardware)
    assert fits(stages, hardware), [stage.total / 2**30 for stage in stages]


@pytest.mark.parametrize("name", DEVICES)
def test_every_recipe_has_a_version_for_devices_of_64_gb(name):
    hardware = find_hardware("ascend-910b-64")
    config = load(TRAIN / f"{ON_ASCEND[name]}.yaml")
    assert fits(plan_memory(config, DEVICES[name], hardware), hardware)
    if ON_ASCEND[name] != name:  # a recipe for Ascend exists only where it is needed
        assert not fits(plan_memory(load(TRAIN / f"{name}.yaml"), DEVICES[name], hardware), hardware)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/inference").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_that_generates_fits(path):
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


def test_a_run_that_does_not_fit_gets_the_nearest_layouts_that_do(tmp_path):
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
    assert "No layout" in run(path, "--devices", "4", "--memory", "3.0001GiB").output


def test_json_holds_the_plan():
    result = run(TRAIN / "stage4_1m.yaml", "--devices", "8", "--memory", "96GB", "--search", "--json")
    data = json.loads(result.output)
    assert result.exit_code == 0 and data["memory"] == 96 * 10**9 and not data["fits"]
    assert 1 <= len(data["layouts"]) <= 10 and "layout.context_parallel" in " ".join(data["layouts"][0]["overrides"])


def test_contents_can_be_given():
    full = json.loads(run(TRAIN / "stage4_1m.yaml", "--devices", "64", "--json").output)["stages"][0]
    few = ["--devices", "64", "--json", "--tiles", "100", "--loss-tokens", "1000", "--documents", "4"]
    stage = json.loads(run(TRAIN / "stage4_1m.yaml", *few).output)["stages"][0]
    assert stage["contents"] == "as given" and stage["vision_features"] < full["vision_features"]
    refused = run(TRAIN / "stage4_1m.yaml", "--tiles", "5000")
    assert isinstance(refused.exception, PlanError) and "4064" in str(refused.exception)


@pytest.mark.parametrize("text", ["96", "GiB", "96 apples"])
def test_memory_needs_a_unit(text):
    with pytest.raises(PlanError, match="--host-memory .*96GiB"):
        parse_bytes(text, "--host-memory")
    assert parse_bytes("1.5 GiB", "--memory") == 3 << 29 and parse_bytes("80gb", "--memory") == 80 * 10**9


def test_a_device_of_80_gb_has_more_than_74_gib():
    """Its driver gives nearly 80 GiB; a plan for 80e9 bytes would recompute more than necessary."""
    sizes = {name: one.memory / 2**30 for name, one in HARDWARE.items()}
    assert 79 < sizes["h100-80"] < 79.65 and 79 < sizes["a100-80"] < 80 and 60 < sizes["ascend-910b-64"] < 61
    assert 139 < sizes["h200-141"] < 140.4 and 94 < sizes["h20-96"] < 95.6
    assert all(hardware_of(one.layer_memory.platform).layer_memory == one.layer_memory for one in HARDWARE.values())
    with pytest.raises(PlanError, match="3 GiB of it are reserved"):
        find_hardware("h100-80", "2GiB")


def test_offloaded_inputs_have_to_fit_the_host():
    recipe = ["--devices", "8", "--memory", "96GB", "--json"]
    stage = json.loads(run(TRAIN / "stage4_1m_8.yaml", *recipe).output)["stages"][0]
    rows, width = 1048576 // 8, 5120
    # torch's allocator of pinned memory rounds the 1.25 GiB of each input up to 2 GiB.
    assert stage["offloaded"] == 48 * 2 * (1 << (rows * width - 1).bit_length()) == 96 << 30
    short = run(TRAIN / "stage4_1m_8.yaml", *recipe[:-1], "--host-memory", "700GiB")
    assert short.exit_code == 1 and "a device offloads 96.0 GiB to the host" in short.output
    assert "--host-memory" in short.output


def test_refusals_of_the_platform_have_a_line():
    path = TRAIN / "stage3_128k_ascend.yaml"
    assert run(path, "layout.ulysses=1", "--hardware", "ascend-910b-64").exit_code == 0
    four = ["layout.tensor_parallel=4", "layout.context_parallel=4", "layout.ulysses=2"]
    assert run(path, *four).exit_code in (0, 1)
    ascend = find_hardware("ascend-910b-64").layer_memory.platform
    for where in (["--hardware", "ascend-910b-64"], [f"platform={ascend}"]):
        refused = run(path, *four, *where)
        assert isinstance(refused.exception, ConfigError)
        assert str(refused.exception).startswith(f"override: layout.ulysses = 2: is refused on {ascend}")
    fp8 = run(path, "training.fp8=tensorwise", "--hardware", "a100-80")
    assert "override: training.fp8 = tensorwise: a100-80 has no FP8 products" in str(fp8.exception)
    assert "h100-80" in str(fp8.exception)


def test_devices_that_do_not_divide_are_refused_with_the_line():
    refused = run(TRAIN / "stage3_128k.yaml", "--devices", "12")
    assert isinstance(refused.exception, ConfigError)
    assert "configs/layout/tp8_cp2.yaml:3: layout.tensor_parallel = 8: 12 processes" in str(refused.exception)
    searched = run(TRAIN / "stage3_128k.yaml", "--devices", "8", "--search", "--json")
    assert "configs/layout/tp8_cp2.yaml:3: layout.tensor_parallel" in json.loads(searched.output)["problem"]


def test_fp8_halves_kept_inputs_and_adds_copies_of_weights():
    path = TRAIN / "stage3_128k.yaml"
    overrides, device = ([], ["training.fp8=tensorwise"]), HARDWARE["h100-80"]
    half, fp8 = (plan_memory(load(path, more), 16, device)[0] for more in overrides)
    language = load(path).model.language
    assert fp8.by_kind["FP8 weights"] == 2 * language.num_layers * language.layer_weights // 8
    assert fp8.by_kind["mlp"] < half.by_kind["mlp"] and fp8.parameters == half.parameters
    assert seconds(load(path, ["training.fp8=tensorwise"]), 16).compute < seconds(load(path), 16).compute


def test_each_layout_says_what_it_costs_more_than_the_first():
    found = search(load(TRAIN / "stage4_1m.yaml"), 16, find_hardware("h100-80", "96GB"))
    assert found[0].reason(found[0]).startswith("100% arithmetic and memory")
    assert found[-1].reason(found[0]).startswith("+3%: 68.7 s more TP")
    assert found[0].reason(found[-1]).startswith("-3%: 68.7 s less TP")


def test_options_that_would_have_no_effect_are_refused(tmp_path):
    recipe = TRAIN / "stage1_align.yaml"
    for options in (["--rank", "1"], ["--no-files"], ["--dry-run", "--search"], ["--dry-run", "--tiles", "3"]):
        refused = run(recipe, *options)
        assert refused.exit_code == 2 and "--dry-run" in refused.output
    refused = run(recipe, "--html", tmp_path / "nowhere" / "plan.html")
    assert isinstance(refused.exception, PlanError) and "--html" in str(refused.exception)


def test_hardware_must_be_known():
    with pytest.raises(PlanError, match="h100-80"):
        find_hardware("abacus")
    assert all(dataclasses.is_dataclass(one) and one.usable() > 0 for one in HARDWARE.values())


def test_a_page_that_is_a_folder_is_refused(tmp_path):
    config = str(TRAIN / "stage2_general.yaml")
    result = CliRunner().invoke(app, ["plan", config, "--html", str(tmp_path)])
    assert isinstance(result.exception, PlanError) and "is a folder; name a file" in str(result.exception)


@pytest.mark.parametrize("option", ["--search", "--dry-run"])
def test_a_model_without_data_has_no_search_and_no_dry_run(option):
    config = str(REPOSITORY / "configs/inference/long_vita_72b_1m.yaml")
    result = CliRunner().invoke(app, ["plan", config, option])
    assert isinstance(result.exception, PlanError) and f"{option} is for a run that trains" in str(result.exception)
