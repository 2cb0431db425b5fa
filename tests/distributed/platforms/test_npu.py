"""The Ascend platform over a stub of torch_npu equals the CPU platform and avoids MindSpeed's traps.

Each test runs twice: over the stub of MindSpeed, and over MindSpeed's own source where MINDSPEED_SOURCE is the folder
that contains the package `mindspeed` (`scripts/check_mindspeed.sh`); elsewhere the second is deselected and listed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longvita.platforms.layer_memory import ASCEND
from tests.conftest import REPOSITORY
from tests.distributed.helpers import run_distributed
from tests.distributed.platforms import ascend_runs
from tests.tiny_folder import POSITIONS, write_tiny_model

TOLERANCE = 1e-5
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "TP2": {"layout": {"tensor_parallel": 2}},
    "CP2": {"layout": {"context_parallel": 2}},
    "TP2+SP": {"layout": {"tensor_parallel": 2, "sequence_parallel": True}},
    "DP2": {},
    "PP2": {"layout": {"pipeline_parallel": 2}},
    "interleaved PP2": {"layout": {"pipeline_parallel": 2, "virtual_pipeline": 2}},
    "CP2, full recomputation": {
        "layout": {"context_parallel": 2},
        "training": {"recompute": {"granularity": "full", "method": "uniform", "offload": True}},
    },
    "TP2, projector alone": {"layout": {"tensor_parallel": 2}, "training": {"trainable": ["projector"]}},
}
"""One set of processes takes them in this order: nearly every one changes the size of tensor parallelism."""
FOUR_PROCESSES: dict[str, dict[str, Any]] = {
    "TP2 x CP2 + SP": {"layout": {"tensor_parallel": 2, "context_parallel": 2, "sequence_parallel": True}},
    "CP4": {"layout": {"context_parallel": 4}},
    "CP2 x PP2": {"layout": {"context_parallel": 2, "pipeline_parallel": 2}},
    "CP2 x DP2": {"layout": {"context_parallel": 2}},
}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {1: {"one process": {}}, 2: TWO_PROCESSES, 4: FOUR_PROCESSES}


@pytest.fixture(params=["stub", pytest.param("source", marks=pytest.mark.mindspeed)])
def mindspeed(request: pytest.FixtureRequest) -> str | None:
    """The folder of MindSpeed's own source, or None for its stub."""
    return os.environ["MINDSPEED_SOURCE"] if request.param == "source" else None


def run(function: Any, size: int, *args: Any) -> list[Any]:
    """The results of `function` in processes that have not imported megatron-core."""
    return run_distributed(function, size, *args, fresh=True)


@cache
def _results(size: int, source: str | None) -> dict[str, list[dict[str, Any]]]:
    """By layout, the result of each rank. One set of processes runs all layouts, with a repatch for each."""
    ranks = run(ascend_runs.step_at_each_layout, size, list(LAYOUTS[size].values()), source)
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(LAYOUTS[size])}


@cache
def _cpu(trainable: tuple[str, ...] = ()) -> dict[str, Any]:
    from tests.distributed import test_layouts

    sections = {"training": {"trainable": list(trainable)}} if trainable else {}
    return run_distributed(test_layouts._run, 1, sections)[0]


@pytest.mark.parametrize(("size", "layout"), [(size, name) for size, layouts in LAYOUTS.items() for name in layouts])
def test_loss_gradients_and_steps_equal_the_cpu_platform(size: int, layout: str, mindspeed: str | None) -> None:
    from tests.distributed.test_layouts import _assert_close
    from tests.distributed.whole_tensors import whole_tensors

    results = _results(size, mindspeed)[layout]
    expected = _cpu(("projector",) if "projector alone" in layout else ())
    for result in results:
        assert result["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert result["losses"] == pytest.approx(expected["losses"][:2], rel=TOLERANCE)
        assert result["norms"] == pytest.approx(expected["norms"][:2], rel=TOLERANCE)
    _assert_close(whole_tensors([r["gradients"] for r in results]), whole_tensors([expected["gradients"]]))


def test_activation_restores_the_command_line_and_uses_no_argument_of_it(mindspeed: str | None) -> None:
    facts = run(ascend_runs.facts_of_activation, 1, mindspeed)[0]
    assert facts["argv"] == ["longvita", "train", "config.yaml", "--context-parallel-size", "2"]
    assert facts["arguments_at_import"].get("context_parallel_size") is None
    assert facts["arguments"]["context_parallel_size"] == 1
    assert facts["arguments"]["use_flash_attn"] is True
    assert facts["have_te"]
    targets = facts["again"]
    assert any("linear_with_grad_accumulation" in target for target in targets)
    assert any("get_tp_group" in target for target in targets)
    decided = dict(facts["decisions"])
    assert "ring" in decided["context parallelism"]
    assert int(decided["names replaced by MindSpeed"]) > 10


@pytest.mark.parametrize("trainable", [["projector"], ["projector", "language"]], ids=["frozen", "trained"])
def test_linear_layers_keep_what_plans_count(trainable: list[str], mindspeed: str | None) -> None:
    for found in run(ascend_runs.linear_layers, 2, trainable, mindspeed):
        in_buffer = ASCEND.gather_buffer and "language" in trainable
        assert found["buffer"] == (found["gathered"] if in_buffer else 0)
        assert found["keeps_input"] == (ASCEND.keeps_frozen_row_inputs or "language" in trainable)


def test_activation_prints_nothing_and_leaves_logging_alone(mindspeed: str | None) -> None:
    facts = run(ascend_runs.output_of_activation, 1, mindspeed)[0]
    assert facts["printed"] == ""
    assert facts["after"] == facts["before"]


def test_activation_after_megatron_is_an_error(mindspeed: str | None) -> None:
    error = run(ascend_runs.too_late, 1, mindspeed)[0]
    assert "before megatron-core" in error and "activate the platform before" in error


def test_the_vision_tower_inherits_nothing(mindspeed: str | None) -> None:
    facts = run(ascend_runs.configs_under_context_parallelism, 2, mindspeed)[0]
    # A config that sets none of the fields: this is the trap.
    assert facts["careless"] == {
        "context_parallel_size": 2,
        "normalization": "RMSNorm",
        "num_query_groups": 1,
        "num_attention_heads": 2,
    }
    assert facts["vision"] == {
        "context_parallel_size": 1,
        "normalization": "LayerNorm",
        "num_query_groups": 2,
        "num_attention_heads": 2,
    }
    assert facts["language"]["num_query_groups"] == 2
    assert facts["language"]["context_parallel_size"] == 1  # only its core attention has another value
    assert facts["ring"] == (2, 1)


def test_mask_types_that_lose_causality_are_refused(mindspeed: str | None) -> None:
    found = run(ascend_runs.mask_types, 1, mindspeed)[0]
    assert found.pop("causal") == ("", False)
    assert found["padding_causal"][1]  # in MindSpeed the first token attends to the last
    for mask, (error, _) in found.items():
        assert mask in error and "both directions" in error


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("bf16", {}),
    ("bf16", {"tensor_parallel": 2, "sequence_parallel": True}),
    ("bf16", {"context_parallel": 2}),
    ("bf16", {"pipeline_parallel": 2}),
    ("fp32", {}),
]


def test_a_stopped_run_resumes_bitwise(tmp_path: Path, mindspeed: str | None) -> None:
    for results in run(ascend_runs.stopped_and_resumed, 2, RUNS, str(tmp_path), mindspeed):
        for result in results:
            assert result["resumed"] == result["after"]
            assert result["different"] == []
            assert result["before"] != result["after"]


def test_greedy_tokens_equal_those_of_the_golden_model_after_each_change_of_layout(mindspeed: str | None) -> None:
    from tests.distributed.test_generation import GREEDY_TOKENS

    layouts: list[dict[str, Any]] = [
        {"tensor_parallel": 2},
        {"context_parallel": 2},
        {"tensor_parallel": 2, "sequence_parallel": True},
        {"pipeline_parallel": 2},
    ]
    for answers in run(ascend_runs.greedy_answers, 2, layouts, mindspeed):
        assert answers == [GREEDY_TOKENS] * len(layouts)


def test_the_optimizer_format_is_converted_both_ways(tmp_path: Path, mindspeed: str | None) -> None:
    """From the Ascend platform to the CPU platform at another layout, and back at a third layout."""
    folder, layout = str(tmp_path), {"tensor_parallel": 2, "sequence_parallel": True}
    there = run(ascend_runs.save_and_convert, 2, folder, layout, mindspeed)[0]
    assert "--optimizer dp_reshardable" in there["error"]
    here = run_distributed(ascend_runs.resume_on_cpu, 2, folder, {})[0]
    assert "saved on platform npu" in here["error"] and "--optimizer fully_reshardable" in here["error"]
    back = run(ascend_runs.resume_from_cpu, 2, folder, {"context_parallel": 2}, mindspeed)[0]
    for found in (here["after"], back):
        # fp32 reveals an optimizer moment that is assigned to the wrong parameter.
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in there["after"]], rel=1e-5)


def test_another_commit_of_mindspeed_with_another_order_is_refused(tmp_path: Path, mindspeed: str | None) -> None:
    layout = {"tensor_parallel": 2}
    ranks = run(ascend_runs.resumed_with_another_commit, 2, str(tmp_path), layout, mindspeed)
    for found in ranks:
        for error in (found["error"], found["conversion"]):
            assert "mindspeed 0.16.0 (commit 66fbddd7); now with " in error
            assert "mindspeed 0.16.0 (commit e4772499). fix: " in error
            assert "layer_norm_weight at place " in error or "linear_fc1.weight at place " in error
        # The remedy of the message: by name with the old commit, back with the new one.
        assert [loss for loss, _ in found["resumed"]] == pytest.approx([loss for loss, _ in found["after"]], rel=1e-6)
        assert found["wrong without the check"] > 0
    assert ranks[0]["error"] == ranks[1]["error"]


def longvita(*command: object, source: str | None, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python with the platform `npu` over stubs in every process that it starts, in a folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY / 'tests' / 'stubs' / 'ascend_start'}:{REPOSITORY}",
        "MINDSPEED_SOURCE_OF_COMMANDS": source or "",
        "OMP_NUM_THREADS": "1",
    }
    command = (sys.executable, *map(str, command))
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)


def test_generate_prints_the_answer_alone(tmp_path: Path, mindspeed: str | None) -> None:
    model = write_tiny_model(tmp_path)
    (tmp_path / "npu.yaml").write_text("platform: npu\n")
    question = ["--question", "Name the digit.", "--max-new-tokens", 8, "--max-seq-len", POSITIONS]
    arguments = ["-m", "longvita", "generate", model.folder, *question, "--layout", "tp=2"]
    cpu = longvita(*arguments, source=mindspeed, folder=tmp_path)
    npu = longvita(*arguments, "--config", "npu.yaml", source=mindspeed, folder=tmp_path)
    assert cpu.returncode == npu.returncode == 0, cpu.stderr + npu.stderr
    assert cpu.stdout.strip()
    assert npu.stdout == cpu.stdout


STAGES = ("stage1", "stage2", "stage3_short", "stage3", "stage4")
TRAIN = """
import sys
from longvita.commands.train import train_stages
from longvita.config import load

SHORT = ["training.train_iterations=2", "training.validation_sequences=2", "logging.interval=1"]
RING = {"stage3": ["layout.ulysses=1"], "stage4": ["layout.ulysses=1"]}  # MindSpeed has no Ulysses here
folder, platform, *names = sys.argv[1:]
if __name__ == "__main__":
    stages = [load(f"{folder}/{name}.yaml", [f"platform={platform}", *SHORT, *RING.get(name, [])]) for name in names]
    sys.exit(train_stages(*stages))
"""


@pytest.mark.long
def test_the_quickstart_stages_in_one_process_have_the_losses_of_the_cpu(tmp_path: Path, mindspeed: str | None) -> None:
    """Five runs at TP2, DP2, PP2 and CP2 one after the other, as the quickstart trains them."""
    from tools.quickstart.build import Sizes, build

    sizes = Sizes(
        variants=1,
        train={"digit": 12, "pictures": 12, "short_videos": 6, "long_videos": 2, "needles": 2},
        held_out={"digit": 6, "pictures": 6, "short_videos": 4, "long_videos": 2},
        needles={330: 1},
    )
    losses = {}
    build(tmp_path / "data", sizes, processes=1)
    for platform in ("cpu", "npu"):
        (tmp_path / platform / "runs" / "quickstart").mkdir(parents=True)
        (tmp_path / platform / "runs" / "quickstart" / "data").symlink_to(tmp_path / "data")
        recipes = REPOSITORY / "configs" / "train" / "quickstart"
        done = longvita("-c", TRAIN, recipes, platform, *STAGES, source=mindspeed, folder=tmp_path / platform)
        assert done.returncode == 0, done.stderr
        metrics = [tmp_path / platform / "runs" / "quickstart" / stage / "metrics.jsonl" for stage in STAGES]
        lines = [json.loads(line) for path in metrics for line in path.read_text().splitlines()]
        losses[platform] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["cpu"]) >= 2 * len(STAGES)
    assert losses["npu"] == pytest.approx(losses["cpu"], rel=1e-4)
