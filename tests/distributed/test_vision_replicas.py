"""The tower that every TP rank holds whole: equal from the start, counted and saved once, on the first stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.helpers import run_distributed
from tests.distributed.mixed_batch import tiny_config
from tests.distributed.whole_tensors import local_parts, whole_tensors

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2},
    {"pipeline_parallel": 2, "virtual_pipeline": 2},
]


def _build(layout: dict[str, Any], seed: int) -> tuple[Any, Any]:
    from longvita.model.build import build_model
    from longvita.platforms import get

    config = tiny_config(layout=layout, seed=seed)
    platform = get(config.platform)
    platform.activate()
    groups = platform.build_groups(config)
    return build_model(config, groups, platform), groups


def _fresh(rank: int, size: int, layout: dict[str, Any]) -> dict[str, Any]:
    models, groups = _build(layout, seed=7)
    vision = [p for m in models if m.vision_model is not None for p in m.vision_model.parameters()]
    return {
        "parts": local_parts(models, groups, lambda p: p),
        "holds_vision": [m.vision_model is not None for m in models],
        "split": any(getattr(p, "tensor_model_parallel", False) for p in vision),
    }


def _size(layout: dict[str, Any]) -> int:
    return layout.get("tensor_parallel", 1) * layout.get("pipeline_parallel", 1)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_fresh_weights_are_the_same_at_every_layout(layout: dict[str, Any]) -> None:
    expected = whole_tensors([run_distributed(_fresh, 1, {})[0]["parts"]])
    results = run_distributed(_fresh, _size(layout), layout)
    got = whole_tensors([result["parts"] for result in results])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert [flag for r in results for flag in r["holds_vision"]].count(True) == layout.get("tensor_parallel", 1)
    assert not any(result["split"] for result in results)


def _save(rank: int, size: int, layout: dict[str, Any], folder: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    models, groups = _build(layout, seed=7)
    state = {f"chunk{i}": model.sharded_state_dict() for i, model in enumerate(models)}
    dist_checkpointing.save(state, folder)
    return local_parts(models, groups, lambda p: p)


def _load(rank: int, size: int, layout: dict[str, Any], folder: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    models, groups = _build(layout, seed=8)
    state = {f"chunk{i}": model.sharded_state_dict() for i, model in enumerate(models)}
    loaded = dist_checkpointing.load(state, folder)
    for i, model in enumerate(models):
        model.load_state_dict(loaded[f"chunk{i}"])
    return local_parts(models, groups, lambda p: p)


@pytest.mark.parametrize(("saved", "loaded"), [(1, 2), (2, 3), (3, 0)])
def test_weights_move_between_layouts(saved: int, loaded: int, tmp_path: Path) -> None:
    expected = whole_tensors(run_distributed(_save, _size(LAYOUTS[saved]), LAYOUTS[saved], str(tmp_path)))
    got = whole_tensors(run_distributed(_load, _size(LAYOUTS[loaded]), LAYOUTS[loaded], str(tmp_path)))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
