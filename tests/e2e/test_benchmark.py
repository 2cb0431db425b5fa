"""The benchmarks run, print what they promise, and compare engines that compute the same."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import run_command

LIMIT = 600
LARGEST_LOSS_DIFFERENCE = 1e-4


@pytest.mark.timeout(LIMIT)
def test_train_step():
    result = run_command("python tools/benchmark/train_step.py --json --rounds 1 --documents 2", LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures.keys() == {"packed_over_transformers", "padded_over_transformers", "loss_difference"}
    assert figures["packed_over_transformers"] > 0 and figures["padded_over_transformers"] > 0
    assert figures["loss_difference"] < LARGEST_LOSS_DIFFERENCE


def test_train_step_refuses_one_document():
    result = run_command("python tools/benchmark/train_step.py --documents 1", LIMIT)
    assert result.returncode == 2 and "2 documents" in result.stderr


def test_context_parallel():
    result = run_command("python tools/benchmark/context_parallel.py --json --tokens 256 --pairs 1", LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    timed = {"speedup", "efficiency"}
    counted = {"bytes_over_minimum", "flop_imbalance", "mixed_bytes_over_zigzag", "mixed_flop_imbalance"}
    assert figures.keys() == timed | counted | {"output_difference", "gradient_difference"}
    assert all(figures[name] > 0 for name in timed)
    assert figures["output_difference"] < 1e-5 and figures["gradient_difference"] < 1e-5
    # A causal ring need not send every rank's keys and values all the way around.
    assert figures["bytes_over_minimum"] <= 1.01 and figures["flop_imbalance"] <= 1.01
    assert figures["mixed_bytes_over_zigzag"] <= 0.35 and figures["mixed_flop_imbalance"] <= 1.05
    assert result.stdout.count("ulysses") == 2, "CP 2 and 4; the heads do not divide over 3"


def figures_of(command: str) -> dict[str, float]:
    result = run_command(f"python tools/benchmark/{command} --json", LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_data_plan():
    figures = figures_of("data.py --part plan --samples 200000")
    assert figures["index_bytes_per_sample"] <= 48
    assert figures["fill"] >= 0.995 and figures["fill_long"] >= 0.995
    assert 1 <= figures["step_imbalance"] <= 1.05 < figures["step_imbalance_in_order"]
    others = {name: value for name, value in figures.items() if name.startswith("fill_over_")}
    # First-fit decreasing sorts everything: it fills a little more and mixes nothing.
    assert len(others) == 4 and others.pop("fill_over_first_fit_decreasing") > 0.998
    assert all(value >= 1 for value in others.values())


def test_data_archives():
    figures = figures_of("data.py --part archives")
    assert figures.pop("webdataset_bytes_over_members") < 1.02
    assert figures == {"webdataset_requests_a_sample": 1, "webdataset_requests_a_sample_by_members": 4}


def test_packed_attention():
    figures = figures_of("packed_attention.py --documents 4 --tokens 50 --rounds 1")
    assert figures.keys() == {"speedup", "output_difference", "gradient_difference"}
    assert figures["speedup"] > 0
    assert figures["output_difference"] < 1e-5 and figures["gradient_difference"] < 1e-5


def test_logits_mask():
    figures = figures_of("logits_mask.py --vocabulary 30000 --tokens 2048 --loss-tokens 16 --chunk 64 --rounds 1")
    few = {"memory_ratio", "time_ratio", "loss_difference", "gradient_difference"}
    every = {"chunked_memory_ratio", "chunked_time_ratio", "chunked_loss_difference", "chunked_gradient_difference"}
    assert figures.keys() == few | every
    assert all(value <= 1e-6 for name, value in figures.items() if "difference" in name)
    # The plain head holds three tensors of 2,048 x 30,000 at once, ours one of 16 or 64 rows, and some scratch.
    assert figures["memory_ratio"] > 8 and figures["chunked_memory_ratio"] > 4


@pytest.mark.timeout(LIMIT)
def test_decode():
    figures = figures_of("decode.py --tokens 1200 --new-tokens 3")
    assert figures.keys() == {"speedup", "merge_overhead", "prefix_reuse_cost"}
    assert all(value > 0 for value in figures.values())


@pytest.mark.timeout(LIMIT)
def test_million_tokens():
    figures = figures_of("million_tokens.py --tokens 16384")
    ratios = {"peak_rss_slope", "efficiency", "needle_found", "encoding_peak_ratio"}
    assert figures.keys() == ratios | {"tokens", "frames", "prefill_seconds"}
    assert figures["needle_found"] == 1
    assert 16384 - 258 < figures["tokens"] <= 16384 and figures["frames"] == 63
