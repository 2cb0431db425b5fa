"""What a session of generation takes from the config of a training run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longvita import platforms
from longvita.inference.session import _with_precision
from tests.tiny import tiny_config


@pytest.mark.parametrize(("asked", "wanted"), [("auto", "fp32"), ("bf16", "bf16")])
def test_a_run_in_fp8_is_served_without(asked: str, wanted: str) -> None:
    """Its products take rows in sixteens; and it may have been trained on another kind of device."""
    trained = tiny_config(training={"precision": "bf16", "fp8": "tensorwise"})
    settings: Any = SimpleNamespace(precision=asked, config=trained)
    cpu = platforms.get("cpu")
    config = _with_precision(settings, cpu)
    assert (config.training.precision, config.training.fp8) == (wanted, None)
    assert cpu.problems(config) == []
