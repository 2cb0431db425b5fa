"""The Ascend door over the stubs of torch_npu and MindSpeed: equal to the CPU door, and MindSpeed's traps kept shut."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.distributed.helpers import run_distributed
from tests.distributed.platforms import ascend_runs

TOLERANCE = 1e-5
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "TP2": {"layout": {"tensor_parallel": 2}},
    "TP2+SP": {"layout": {"tensor_parallel": 2, "sequence_parallel": True}},
    "CP2": {"layout": {"context_parallel": 2}},
    "DP2": {},
    "CP2, full recomputation": {
        "layout": {"context_parallel": 2},
        "training": {"recompute": {"granularity": "full", "method": "uniform", "offload": True}},
    },
    "TP2, projector alone": {"layout": {"tensor_parallel": 2}, "training": {"trainable": ["projector"]}},
}
FOUR_PROCESSES: dict[str, dict[str, Any]] = {
    "TP2 x CP2 + SP": {"layout": {"tensor_parallel": 2, "context_parallel": 2, "sequence_parallel": True}},
    "CP4": {"layout": {"context_parallel": 4}},
    "CP2 x PP2": {"layout": {"context_parallel": 2, "pipeline_parallel": 2}},
}


@cache
def _door(size: int) -> dict[str, list[dict[str, Any]]]:
    """Per layout, what each rank found; one set of processes goes through all of them, repatched each time."""
    layouts = {1: {"one process": {}}, 2: TWO_PROCESSES, 4: FOUR_PROCESSES}[size]
    ranks = run_distributed(ascend_runs.step_at_each_layout, size, list(layouts.values()), fresh=True)
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(layouts)}


@cache
def _cpu(trainable: tuple[str, ...] = ()) -> dict[str, Any]:
    from tests.distributed import test_layouts

    sections = {"training": {"trainable": list(trainable)}} if trainable else {}
    return run_distributed(test_layouts._run, 1, sections)[0]


@pytest.mark.parametrize(
    ("size", "layout"),
    [(1, "one process"), *((2, name) for name in TWO_PROCESSES), *((4, name) for name in FOUR_PROCESSES)],
)
def test_loss_gradients_and_steps_equal_the_cpu_door(size: int, layout: str) -> None:
    from tests.distributed.test_layouts import _assert_close
    from tests.distributed.whole_tensors import whole_tensors

    results = _door(size)[layout]
    expected = _cpu(("projector",) if "projector alone" in layout else ())
    for result in results:
        assert result["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert result["losses"] == pytest.approx(expected["losses"][:2], rel=TOLERANCE)
        assert result["norms"] == pytest.approx(expected["norms"][:2], rel=TOLERANCE)
    _assert_close(whole_tensors([r["gradients"] for r in results]), whole_tensors([expected["gradients"]]))


def test_activation_leaves_the_command_line_and_takes_no_argument_from_it() -> None:
    facts = run_distributed(ascend_runs.facts_of_activation, 1, fresh=True)[0]
    assert facts["argv"] == ["longvita", "train", "config.yaml", "--context-parallel-size", "2"]
    assert "context_parallel_size" not in facts["arguments_at_import"]
    assert facts["arguments"]["context_parallel_size"] == 1
    assert facts["arguments"]["use_flash_attn"] is True
    assert facts["have_te"]
    assert any("linear_with_grad_accumulation" in target for target in facts["again"])
    decided = dict(facts["decisions"])
    assert "ring" in decided["context parallelism"]
    assert int(decided["names replaced by MindSpeed"]) > 10


def test_a_door_opened_after_megatron_says_so() -> None:
    error = run_distributed(ascend_runs.too_late, 1, fresh=True)[0]
    assert "before megatron-core" in error and "activate the platform first" in error


def test_the_vision_tower_inherits_nothing() -> None:
    facts = run_distributed(ascend_runs.configs_under_context_parallelism, 2, fresh=True)[0]
    # What a config gets that names nothing: the trap is there.
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
    assert facts["language"]["context_parallel_size"] == 1  # its core attention alone has the other
    assert facts["ring"] == (2, 1)


def test_mask_types_that_lose_causality_are_refused() -> None:
    found = run_distributed(ascend_runs.mask_types, 1, fresh=True)[0]
    assert found.pop("causal") == ("", False)
    assert found["padding_causal"][1]  # MindSpeed sees the last token from the first
    for mask, (error, _) in found.items():
        assert mask in error and "both directions" in error


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("bf16", {}),
    ("bf16", {"tensor_parallel": 2, "sequence_parallel": True}),
    ("bf16", {"context_parallel": 2}),
    ("fp32", {}),
]


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Any) -> None:
    for results in run_distributed(ascend_runs.stopped_and_resumed, 2, RUNS, str(tmp_path), fresh=True):
        for result in results:
            assert result["resumed"] == result["after"]
            assert result["different"] == []
            assert result["before"] != result["after"]


def test_it_answers_what_the_golden_model_answers() -> None:
    from tests.distributed.test_generation import GREEDY_TOKENS

    layouts: list[dict[str, Any]] = [{"tensor_parallel": 2}, {"context_parallel": 2}]
    for answers in run_distributed(ascend_runs.greedy_answers, 2, layouts, fresh=True):
        assert answers == [GREEDY_TOKENS] * len(layouts)


def test_the_optimizer_s_format_is_converted_both_ways(tmp_path: Any) -> None:
    """From the Ascend door to the CPU door at another layout, and back to yet another one."""
    there = run_distributed(
        ascend_runs.saved_for_all, 2, str(tmp_path), {"tensor_parallel": 2, "sequence_parallel": True}, fresh=True
    )[0]
    assert "--optimizer dp_reshardable" in there["error"]
    here = run_distributed(ascend_runs.cpu_goes_on, 2, str(tmp_path), {})[0]
    assert "saved on platform npu" in here["error"] and "--optimizer fully_reshardable" in here["error"]
    back = run_distributed(ascend_runs.back_again, 2, str(tmp_path), {"context_parallel": 2}, fresh=True)[0]
    for found in (here["after"], back):
        # In fp32, which shows a moment in a wrong place.
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in there["after"]], rel=1e-5)
