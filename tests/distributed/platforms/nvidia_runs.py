"""What the processes of the Nvidia door's tests do. Nothing here imports megatron-core before the stub is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Norms that Transformer Engine's layers hold in the linear behind them, and their names where they stand alone."""


def active_door(library: str) -> Any:
    """The platform over a stub, active; the CPU's for "cpu"."""
    if library == "cpu":
        from longvita.platforms import get

        platform = get("cpu")
    else:
        from tests.stubs import nvidia_platform

        platform = nvidia_platform.platform(library)
    platform.activate()
    return platform


def step_at_each_layout(rank: int, size: int, library: str, layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss, gradients and two optimizer steps of the mixed packed batch, at one layout after the other."""
    platform = active_door(library)
    return [_step(platform, sections) for sections in layouts]


def _step(platform: Any, sections: dict[str, Any]) -> dict[str, Any]:
    from longvita.parallel.groups import initialize
    from longvita.training.state import build_state
    from longvita.training.step import forward_backward, train_step
    from longvita.verify.compare import gather_gradients
    from tests.distributed.mixed_batch import micro_batches, tiny_config
    from tests.distributed.whole_tensors import local_parts

    # With this epsilon a step is close to linear in the gradient.
    config = tiny_config(**sections, optimizer={"adam_eps": 1e-2})
    groups = initialize(config, platform)
    state = build_state(config, groups, platform)
    batches = micro_batches(config, groups)
    for chunk in state.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    losses, _ = forward_backward(state, batches, len(batches), ("pictures", "text"))
    gather_gradients(state)
    gradients = local_parts(state.models, groups, lambda p: p.main_grad if p.requires_grad else None)
    steps = [train_step(state, micro_batches(config, groups, seed), len(batches)) for seed in range(2)]
    layer = state.models[-1].language_model.decoder.layers[0]
    groups.destroy()
    gradients["parts"] = {_separate(name): part for name, part in gradients["parts"].items()}
    return {
        "loss": losses.loss,
        "gradients": gradients,
        "norms": [step.grad_norm for step in steps],
        "losses": [step.losses.loss for step in steps],
        "attention": type(layer.self_attention.core_attention).__name__,
        "method": getattr(layer.self_attention.core_attention, "cp_comm_type", None),
    }


def _separate(name: str) -> str:
    for fused, separate in FUSED_NAMES.items():
        name = name.replace(fused, separate)
    return name


def stopped_and_resumed(rank: int, size: int, library: str, layout: dict[str, Any], folder: str) -> dict[str, Any]:
    """A bf16 run that is stopped after two steps, and what comes after a resume in place of going on."""
    platform = active_door(library)
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.save import Checkpointer
    from tests.distributed.training_runs import go_on, run_config, tensors, unequal

    config = run_config(layout, training={"precision": "bf16"})
    state = _fresh(platform, config)
    before = go_on(state, 2)
    checkpointer = Checkpointer(Path(folder), keep=1, platform=platform)
    checkpointer.save(state)
    checkpointer.poll(wait=True)
    after, wanted = go_on(state, 2), tensors(state)
    state.groups.destroy()
    again = _fresh(platform, config)
    newest = newest_intact(Path(folder))
    if newest is None:
        raise RuntimeError(f"no checkpoint in {folder}")
    load_state(again, newest)
    found = go_on(again, 2)
    different = unequal(wanted, tensors(again))
    return {"before": before, "after": after, "resumed": found, "different": different}


def resumed_elsewhere(rank: int, size: int, library: str, layout: dict[str, Any], folder: str) -> list[Any]:
    """The two steps that follow a checkpoint of another platform, at this layout."""
    platform = active_door(library)
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from tests.distributed.training_runs import go_on, run_config

    state = _fresh(platform, run_config(layout, training={"precision": "bf16"}))
    newest = newest_intact(Path(folder))
    if newest is None:
        raise RuntimeError(f"no checkpoint in {folder}")
    load_state(state, newest)
    return go_on(state, 2)


def _fresh(platform: Any, config: Any) -> Any:
    from longvita.parallel.groups import initialize
    from longvita.training.state import build_state

    return build_state(config, initialize(config, platform), platform)


def logits_with_a_cache(rank: int, size: int, library: str, layout: dict[str, Any]) -> list[Any]:
    """Logits of the golden model after each chunk of the golden prompt, and after each of its greedy tokens."""
    platform = active_door(library)
    from longvita.checkpoint.hf.read_weights import read_weights
    from longvita.inference.engine import Engine
    from longvita.model.build import build_model
    from longvita.parallel.groups import initialize
    from tests.distributed.test_generation import GOLDEN, cached_logits, golden_config

    config = golden_config(layout)
    groups = initialize(config, platform)
    models = build_model(config, groups, platform, fresh=False)
    read_weights(models, GOLDEN, groups)
    logits = cached_logits(Engine(models, config, None, groups, platform))
    return [(position, row.float()) for position, row in sorted(logits.items())]
