"""Runs on a given platform, which must be active before megatron-core is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Names of norms that are fused with the next linear layer, and their names as separate modules."""


def step(platform: Any, sections: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradients and two optimizer steps of the mixed packed batch."""
    from longvita.training.step import forward_backward, train_step
    from longvita.verify.compare import gather_gradients
    from tests.distributed.mixed_batch import micro_batches, tiny_config
    from tests.distributed.whole_tensors import local_parts

    # With this epsilon a step is close to linear in the gradient.
    config = tiny_config(**sections, optimizer={"adam_eps": 1e-2})
    state = fresh_state(platform, config)
    groups = state.groups
    batches = micro_batches(config, groups)
    for chunk in state.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    losses, _ = forward_backward(state, batches, len(batches), ("pictures", "text"))
    gather_gradients(state)
    gradients = local_parts(state.models, groups, lambda p: p.main_grad if p.requires_grad else None)
    steps = [train_step(state, micro_batches(config, groups, seed), len(batches)) for seed in range(2)]
    attention = state.models[-1].language_model.decoder.layers[0].self_attention.core_attention
    groups.destroy()
    gradients["parts"] = {separate_name(name): part for name, part in gradients["parts"].items()}
    return {
        "loss": losses.loss,
        "gradients": gradients,
        "norms": [step.grad_norm for step in steps],
        "losses": [step.losses.loss for step in steps],
        "attention": type(attention).__name__,
        "method": getattr(attention, "cp_comm_type", None),
    }


def separate_name(name: str) -> str:
    """A parameter's name with its norm as a separate module."""
    for fused, separate in FUSED_NAMES.items():
        name = name.replace(fused, separate)
    return name


def fresh_state(platform: Any, config: Any) -> Any:
    """The training state of a new run, with new process groups."""
    from longvita.training.state import build_state

    return build_state(config, platform.build_groups(config), platform)


def stop_and_resume(platform: Any, precision: str, layout: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run stopped after two steps: its next two steps, and the same steps after a resume from its checkpoint."""
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.save import Checkpointer
    from tests.distributed.training_runs import run_config, run_steps, tensors, unequal

    config = run_config(layout, training={"precision": precision})
    state = fresh_state(platform, config)
    before = run_steps(state, 2)
    checkpointer = Checkpointer(folder, keep=1, platform=platform)
    checkpointer.save(state)
    checkpointer.poll(wait=True)
    after, wanted = run_steps(state, 2), tensors(state)
    state.groups.destroy()
    again = fresh_state(platform, config)
    newest = newest_checkpoint(folder)
    load_state(again, newest)
    found = run_steps(again, 2)
    different = unequal(wanted, tensors(again))
    again.groups.destroy()
    return {"before": before, "after": after, "resumed": found, "different": different, "folder": str(newest)}


def newest_checkpoint(folder: Path) -> Path:
    """The newest intact checkpoint of a folder. Raises RuntimeError if there is none."""
    from longvita.checkpoint.resume import newest_intact

    newest = newest_intact(folder)
    if newest is None:
        raise RuntimeError(f"no checkpoint in {folder}")
    return newest
