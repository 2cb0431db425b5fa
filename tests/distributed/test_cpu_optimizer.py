"""Adam on CPU inside megatron-core's distributed optimizer, and its checkpoints at other layouts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from longvita import platforms
from longvita.platforms.base import Platform
from tests.distributed.helpers import run_distributed

BEFORE, AFTER = 2, 3
MICRO_BATCHES = 4


def _activate() -> Platform:
    platform = platforms.get("cpu")
    platform.activate()
    return platform


def _state(platform: Platform, models: list, optimizer: Any, is_loading: bool) -> dict:
    metadata = {"distrib_optim_sharding_type": platform.optimizer_sharding_type}
    weights = models[0].module.sharded_state_dict(metadata=metadata)
    state = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
    return {"model": weights, "optimizer": state}


def _train(models: list, optimizer: Any, steps: range, replicas: int, replica: int) -> list[float | None]:
    """Train; each replica uses its part of the micro batches."""
    from tests.distributed import tiny_gpt

    part = MICRO_BATCHES // replicas
    return [tiny_gpt.train_step(models, optimizer, step, part, replica * part) for step in steps]


def _start(rank: int, world_size: int, folder: str, layout: dict) -> list[float | None]:
    """Train, save, continue training."""
    platform = _activate()
    from megatron.core import dist_checkpointing, parallel_state

    from tests.distributed import tiny_gpt

    models, optimizer = tiny_gpt.build(platform, **layout)
    data = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    _train(models, optimizer, range(BEFORE), *data)
    groups = optimizer.param_groups
    assert {group["step"] for group in groups if group["params"]} == {BEFORE}
    dist_checkpointing.save(_state(platform, models, optimizer, False), folder)
    return _train(models, optimizer, range(BEFORE, BEFORE + AFTER), *data)


def _resume(rank: int, world_size: int, folder: str, layout: dict) -> list[float | None]:
    """Load and continue training."""
    platform = _activate()
    from megatron.core import dist_checkpointing, parallel_state

    from tests.distributed import tiny_gpt

    models, optimizer = tiny_gpt.build(platform, **layout)
    loaded = dist_checkpointing.load(_state(platform, models, optimizer, True), folder)
    models[0].module.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    data = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    return _train(models, optimizer, range(BEFORE, BEFORE + AFTER), *data)


def _mean(results: list[list[float | None]]) -> list[float]:
    """Mean over the replicas; stages without a loss are left out."""
    with_loss = [losses for losses in results if losses[0] is not None]
    return [sum(step) / len(step) for step in zip(*with_loss)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return str(folder), _mean(run_distributed(_start, 2, str(folder), {}))


@pytest.mark.parametrize(
    ("processes", "layout"),
    [(1, {}), (2, {}), (2, {"tp": 2, "sp": True}), (2, {"pp": 2})],
    ids=["dp1", "dp2", "tp2_sp", "pp2"],
)
def test_a_dp2_checkpoint_resumes_at_any_layout(saved: tuple[str, list[float]], processes: int, layout: dict) -> None:
    folder, undisturbed = saved
    assert (Path(folder) / ".metadata").exists()
    resumed = _mean(run_distributed(_resume, processes, folder, layout))
    assert resumed == pytest.approx(undisturbed, rel=1e-5)
    assert undisturbed[0] != pytest.approx(undisturbed[-1], rel=1e-4)


def _batched(rank: int, world_size: int) -> str:
    platform = _activate()
    from tests.distributed import tiny_gpt

    models, optimizer = tiny_gpt.build(platform, pp=2, vpp=2, batch_p2p_comm=True, overlap_p2p_comm=False)
    try:
        tiny_gpt.train_step(models, optimizer, 0)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_interleaved_pipeline_with_batched_messages_is_refused() -> None:
    for message in run_distributed(_batched, 2):
        assert "overlap_p2p_comm=True, batch_p2p_comm=False" in message


@functools.cache
def _bf16_losses() -> list[float]:
    return _mean(run_distributed(_bf16, 1))


def _bf16(rank: int, world_size: int) -> list[float | None]:
    platform = _activate()
    import torch
    from megatron.core import parallel_state

    from tests.distributed import tiny_gpt

    models, optimizer = tiny_gpt.build(platform, bf16=True, params_dtype=torch.bfloat16)
    data = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    return _train(models, optimizer, range(3), *data)


def test_bf16_with_fp32_main_parameters_trains() -> None:
    losses = _mean(run_distributed(_bf16, 2))
    assert losses == pytest.approx(_bf16_losses(), rel=1e-2)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
