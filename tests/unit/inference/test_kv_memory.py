"""What a cached token takes on the process that has most of its layers."""

from __future__ import annotations

from typing import Any

import pytest

from longvita.config.schema import Config
from longvita.inference.kv_memory import bytes_per_token


@pytest.mark.parametrize(
    ("layout", "precision", "expected"),
    [
        ({}, "bf16", 2 * 48 * 8 * 128 * 2),
        ({}, "fp32", 2 * 48 * 8 * 128 * 4),
        ({"tensor_parallel": 4, "context_parallel": 2}, "bf16", 2 * 48 * 2 * 128 * 2),
        ({"pipeline_parallel": 2}, "bf16", 2 * 24 * 8 * 128 * 2),
        # A short first stage leaves more layers for the others.
        ({"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 8}, "bf16", 2 * 40 * 8 * 128 * 2),
    ],
)
def test_bytes_of_the_14b(layout: dict[str, Any], precision: str, expected: int) -> None:
    config = Config.model_validate({"layout": layout, "training": {"precision": precision}})
    assert bytes_per_token(config) == expected
