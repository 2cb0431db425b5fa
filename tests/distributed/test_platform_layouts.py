"""The CPU platform's layers train to the same losses at every layout."""

from __future__ import annotations

import functools

import pytest

from longvita import platforms
from tests.distributed.helpers import run_distributed

STEPS = 3


def _losses(rank: int, world_size: int, layout: dict) -> list[float | None]:
    platform = platforms.get("cpu")
    platform.activate()
    from tests.distributed import tiny_gpt

    models, optimizer = tiny_gpt.build(platform, **layout)
    return [tiny_gpt.train_step(models, optimizer, step) for step in range(STEPS)]


@functools.cache
def _single() -> list[float]:
    (losses,) = run_distributed(_losses, 1, {})
    return losses


SELECTIVE = {"recompute_granularity": "selective"}
FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}


@pytest.mark.parametrize(
    "layout",
    [{"tp": 2, **SELECTIVE}, {"tp": 2, "sp": True, **FULL}, {"pp": 2}, {"pp": 2, "vpp": 2, **SELECTIVE}],
    ids=["tp2_selective_recompute", "tp2_sp_full_recompute", "pp2", "pp2_interleaved_selective_recompute"],
)
def test_layouts_train_alike(layout: dict) -> None:
    results = run_distributed(_losses, 2, layout)
    losses = results[-1]
    assert losses == pytest.approx(_single(), rel=1e-5)
    assert _single()[0] != pytest.approx(_single()[-1], rel=1e-3)
