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
