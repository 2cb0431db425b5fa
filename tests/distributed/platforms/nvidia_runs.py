"""Runs of the Nvidia platform over stubs. The stub must precede every import of megatron-core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.distributed.platforms.shared_runs import fresh_state, newest_checkpoint, step, stop_and_resume


def active_platform(library: str) -> Any:
    """The active platform over a stub; the CPU platform for "cpu"."""
    if library == "cpu":
        from longvita.platforms import get

        platform = get("cpu")
    else:
        from tests.stubs import nvidia_platform

        platform = nvidia_platform.platform(library)
    platform.activate()
    return platform


def step_at_each_layout(rank: int, size: int, library: str, layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss, gradients and two optimizer steps of the mixed packed batch, at each layout."""
    platform = active_platform(library)
    return [step(platform, sections) for sections in layouts]


def stopped_and_resumed(rank: int, size: int, library: str, layout: dict[str, Any], folder: str) -> dict[str, Any]:
    """A bf16 run stopped after two steps: the next steps with and without a resume."""
    return stop_and_resume(active_platform(library), "bf16", layout, Path(folder))


def resumed_elsewhere(rank: int, size: int, library: str, layout: dict[str, Any], folder: str) -> list[Any]:
    """The two steps after a checkpoint of another platform, at this layout."""
    platform = active_platform(library)
    from longvita.checkpoint.load import load_state
    from tests.distributed.training_runs import run_config, run_steps

    state = fresh_state(platform, run_config(layout, training={"precision": "bf16"}))
    load_state(state, newest_checkpoint(Path(folder)))
    return run_steps(state, 2)


def logits_with_a_cache(rank: int, size: int, library: str, layout: dict[str, Any]) -> list[Any]:
    """Logits of the golden model after each chunk of the golden prompt, and after each of its greedy tokens."""
    platform = active_platform(library)
    from longvita.checkpoint.hf.read_weights import read_weights
    from longvita.inference.engine import Engine
    from longvita.model.build import build_model
    from tests.distributed.test_generation import GOLDEN, cached_logits, golden_config

    config = golden_config(layout)
    groups = platform.build_groups(config)
    models = build_model(config, groups, platform, fresh=False)
    read_weights(models, GOLDEN, groups)
    logits = cached_logits(Engine(models, config, None, groups, platform))
    return [(position, row.float()) for position, row in sorted(logits.items())]
