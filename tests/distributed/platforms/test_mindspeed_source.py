"""The Ascend platform over MindSpeed's own source, branch core_r0.16.0, and the stub of torch_npu.

MINDSPEED_SOURCE is the folder that contains the package `mindspeed`; einops, scipy and triton must be installed. Other
tests use the stub of MindSpeed. These tests use MindSpeed itself, and fail if its traps, or the ways to avoid them,
differ from those that the platform was written for.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

from longvita.platforms.layer_memory import ASCEND
from tests.distributed.helpers import run_distributed
from tests.distributed.platforms import ascend_runs
from tests.distributed.platforms.test_npu import FOUR_PROCESSES, RUNS, TOLERANCE, TWO_PROCESSES, _cpu

pytestmark = pytest.mark.mindspeed

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one process": {}},
    2: {name: TWO_PROCESSES[name] for name in ("TP2", "TP2+SP", "CP2", "TP2, projector alone")},
    4: {"TP2 x CP2 + SP": FOUR_PROCESSES["TP2 x CP2 + SP"]},
}


def source() -> str:
    return os.environ["MINDSPEED_SOURCE"]


def run(function: Any, size: int, *args: Any) -> list[Any]:
    return run_distributed(function, size, *args, source(), fresh=True)


@cache
def _results(size: int) -> dict[str, list[dict[str, Any]]]:
    ranks = run(ascend_runs.step_at_each_layout, size, list(LAYOUTS[size].values()))
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(LAYOUTS[size])}


@pytest.mark.parametrize(("size", "layout"), [(size, name) for size, names in LAYOUTS.items() for name in names])
def test_loss_and_gradients_equal_the_cpu_platform(size: int, layout: str) -> None:
    from tests.distributed.test_layouts import _assert_close
    from tests.distributed.whole_tensors import whole_tensors

    results = _results(size)[layout]
    expected = _cpu(("projector",) if "projector alone" in layout else ())
    for result in results:
        assert result["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
    _assert_close(whole_tensors([r["gradients"] for r in results]), whole_tensors([expected["gradients"]]))


def test_activation() -> None:
    facts = run(ascend_runs.facts_of_activation, 1)[0]
    assert facts["argv"] == ["longvita", "train", "config.yaml", "--context-parallel-size", "2"]
    assert facts["arguments_at_import"].get("context_parallel_size") is None
    assert facts["arguments"]["context_parallel_size"] == 1
    assert facts["have_te"]


@pytest.mark.parametrize("trainable", [["projector"], ["projector", "language"]], ids=["frozen", "trained"])
def test_linear_layers_keep_what_a_plan_counts(trainable: list[str]) -> None:
    trained = "language" in trainable
    for found in run(ascend_runs.linear_layers, 2, trainable):
        assert found["buffer"] == (found["gathered"] if ASCEND.gather_buffer and trained else 0)
        assert found["keeps_input"] == (ASCEND.keeps_frozen_row_inputs or trained)


def test_too_late() -> None:
    assert "before megatron-core" in run(ascend_runs.too_late, 1)[0]


def test_a_careless_config_inherits_and_the_vision_tower_does_not() -> None:
    facts = run(ascend_runs.configs_under_context_parallelism, 2)[0]
    assert facts["careless"]["context_parallel_size"] == 2
    assert (facts["careless"]["normalization"], facts["careless"]["num_query_groups"]) == ("RMSNorm", 1)
    assert facts["vision"]["context_parallel_size"] == 1
    assert facts["vision"]["normalization"] == "LayerNorm"
    assert facts["vision"]["num_query_groups"] == facts["vision"]["num_attention_heads"]


def test_only_causal_is_causal() -> None:
    found = run(ascend_runs.mask_types, 1)[0]
    assert found["causal"] == ("", False)
    assert found["padding_causal"][1]


def test_a_stopped_run_resumes(tmp_path: Any) -> None:
    for result in run(ascend_runs.stopped_and_resumed, 2, RUNS, str(tmp_path))[0]:
        assert result["resumed"] == result["after"]
        assert result["different"] == []


def test_greedy_tokens_equal_those_of_the_golden_model() -> None:
    from tests.distributed.test_generation import GREEDY_TOKENS

    assert run(ascend_runs.greedy_answers, 2, [{"tensor_parallel": 2}])[0] == [GREEDY_TOKENS]


def test_our_patches_fit() -> None:
    """Activation raises the target's name if a signature is not the recorded one."""
    targets = run(ascend_runs.facts_of_activation, 1)[0]["again"]
    assert any("layernorm_column_parallel_linear" in target for target in targets)
