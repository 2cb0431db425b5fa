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
