"""The Nvidia platform over stubs equals the CPU platform on the mixed packed batch: loss, gradients, optimizer steps.

Tolerances are those of tests/distributed/test_layouts.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.helpers import run_distributed
from tests.distributed.platforms import nvidia_runs
from tests.distributed.platforms.shared_runs import separate_name
from tests.distributed.test_layouts import TOLERANCE, _assert_close
from tests.distributed.whole_tensors import whole_tensors

SP = {"tensor_parallel": 2, "sequence_parallel": True}
ONE_GROUP = {"model": {"language": {"num_query_groups": 1}}}
RECOMPUTED = {"granularity": "full", "method": "block", "num_layers": 4}
ONE: dict[str, dict[str, Any]] = {
    "one process": {},
    "MLP in chunks, full recomputation": {"training": {"mlp_chunk_size": 50, "recompute": RECOMPUTED}},
}
TWO: dict[str, dict[str, Any]] = {
    "TP2": {"layout": {"tensor_parallel": 2}},
    "TP2+SP": {"layout": SP},
    "CP2, ring": {"layout": {"context_parallel": 2, "ulysses": 1}},
    "CP2, Ulysses": {"layout": {"context_parallel": 2, "ulysses": 2}},
}
GATHERED = "CP2, gathered"
FOUR: dict[str, dict[str, Any]] = {
    "TP2 x CP2 + SP": {"layout": SP | {"context_parallel": 2}},
    "CP4, ring": {"layout": {"context_parallel": 4, "ulysses": 1}},
    "CP4, ring of Ulysses": {"layout": {"context_parallel": 4, "ulysses": 2}},
    "CP2 x PP2": {"layout": {"context_parallel": 2, "pipeline_parallel": 2, "ulysses": 1}},
}
SIZES = {1: ONE, 2: TWO | {GATHERED: ONE_GROUP | {"layout": {"context_parallel": 2}}}, 4: FOUR}
METHODS = {
    "CP2, ring": "p2p",
    "CP2, Ulysses": "a2a",
    "CP4, ring": "p2p",
    "CP4, ring of Ulysses": "a2a+p2p",
    "TP2 x CP2 + SP": "p2p",
    GATHERED: "all_gather",
}


@functools.cache
def _references() -> list[dict[str, Any]]:
    """Of the tiny model, and of a tiny model with one group of keys and values."""
    return run_distributed(nvidia_runs.step_at_each_layout, 1, "cpu", [{}, ONE_GROUP], fresh=True)[0]


@functools.cache
def _results(library: str, size: int) -> dict[str, list[dict[str, Any]]]:
    """Each layout's results of all ranks."""
    layouts = SIZES[size]
    ranks = run_distributed(nvidia_runs.step_at_each_layout, size, library, list(layouts.values()), fresh=True)
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(layouts)}


def _compare(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    for result in results:
        for name in ("loss", "losses", "norms"):
            assert result[name] == pytest.approx(reference[name], rel=TOLERANCE), name
    expected = {separate_name(name): value for name, value in whole_tensors([reference["gradients"]]).items()}
    _assert_close(whole_tensors([result["gradients"] for result in results]), expected)


CASES = [(size, layout) for size, layouts in SIZES.items() for layout in layouts]


@pytest.mark.parametrize(("size", "layout"), CASES, ids=[layout for _, layout in CASES])
def test_transformer_engine_equals_the_cpu(size: int, layout: str) -> None:
    results = _results("te", size)[layout]
    assert {result["attention"] for result in results} == {"EngineAttention"}
    if layout in METHODS:
        assert {result["method"] for result in results} == {METHODS[layout]}
    _compare(results, _references()[1 if layout == GATHERED else 0])


@pytest.mark.parametrize("library", ["flash", "none"])
@pytest.mark.parametrize("layout", TWO)
def test_our_own_attention_equals_the_cpu(library: str, layout: str) -> None:
    """Without Transformer Engine; fp32 uses plain matrix products. test_flash_kernels.py tests the flash kernels."""
    results = _results(library, 2)[layout]
    assert {result["attention"] for result in results} == {"KernelAttention"}
    _compare(results, _references()[0])


def test_a_stopped_run_resumes_here_and_on_the_cpu(tmp_path: Path) -> None:
    """Bitwise here; on the CPU, from the same folder, losses differ a little in bf16."""
    arguments = ("te", SP, str(tmp_path))
    for result in run_distributed(nvidia_runs.stopped_and_resumed, 2, *arguments, fresh=True):
        assert result["resumed"] == result["after"] and result["different"] == []
        after = result["after"]
    elsewhere = run_distributed(nvidia_runs.resumed_elsewhere, 2, "cpu", {}, str(tmp_path), fresh=True)
    for loss, wanted in zip(elsewhere[0], after, strict=True):
        assert loss == pytest.approx(wanted, rel=0.02)


def test_a_run_of_the_cpu_resumes_here(tmp_path: Path) -> None:
    """Its parameter groups lack the other entries of Transformer Engine's Adam."""
    stopped = run_distributed(nvidia_runs.stopped_and_resumed, 1, "cpu", {}, str(tmp_path), fresh=True)[0]
    for losses in run_distributed(nvidia_runs.resumed_elsewhere, 2, "te", SP, str(tmp_path), fresh=True):
        for loss, wanted in zip(losses, stopped["after"], strict=True):
            assert loss == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("layout", [{}, SP | {"context_parallel": 2}], ids=["one process", "TP2 x CP2 + SP"])
def test_generation_over_a_cache_equals_the_cpu(layout: dict[str, Any]) -> None:
    """Transformer Engine's layers around our attention, which alone sees the cache and the placement of tokens."""
    size = 4 if layout else 1
    wanted = run_distributed(nvidia_runs.logits_with_a_cache, 1, "cpu", {}, fresh=True)[0]
    for found in run_distributed(nvidia_runs.logits_with_a_cache, size, "te", layout, fresh=True):
        assert [position for position, _ in found] == [position for position, _ in wanted]
        for (_, row), (_, one) in zip(found, wanted, strict=True):
            assert float((row - one).abs().max()) < 1e-4 * max(1.0, float(one.abs().max()))
            assert torch.equal(row.argmax(), one.argmax())
