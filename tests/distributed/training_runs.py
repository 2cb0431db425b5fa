"""Tiny training runs for the distributed tests, on hand-made batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from longvita.checkpoint.training_state import TrainingState
from longvita.config import load
from longvita.config.schema import Config
from longvita.platforms import get
from longvita.training.signals import RunRequests
from longvita.training.state import build_state
from longvita.training.step import train_step
from longvita.training.trainer import TrainingRun
from tests.tiny import batches, tiny_config

SOURCES = {"words": {"data_paths": ["words.jsonl"]}, "pictures": {"data_paths": ["pictures.jsonl"]}}

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_parallel": 2},
    "tp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "dp2": {},
    "cp2": {"context_parallel": 2},
}
"""Layouts of two processes."""
STAGE2 = {"vision_lr_mult": 0.1, "vision_layer_decay": 0.9, "projector_lr_mult": 0.5}
"""Rates that put nearly every layer of the vision encoder in its own group."""


def run_config(layout: str | dict[str, Any], **sections: Any) -> Config:
    """tests.tiny's config at a layout, with two sources named in it."""
    fields = LAYOUTS[layout] if isinstance(layout, str) else layout
    sections.setdefault("optimizer", STAGE2)
    data = {"dataset": SOURCES} | sections.pop("data", {})
    return tiny_config(layout=fields, data=data, **sections)


def start(config: Config) -> TrainingState:
    """A newly initialised state on the CPU platform; replaces an earlier one of this process."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    platform = get("cpu")
    platform.activate()
    return build_state(config, platform.build_groups(config), platform)


def training_run(config_file: str, name: str, layout: str, steps: int, **bad_steps: object) -> TrainingRun:
    """A complete run of the config of `write_run`, in a folder of its own next to it, in these processes."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    config = load(config_file)
    training = config.training.model_copy(
        update={"train_iterations": steps, "bad_steps": config.training.bad_steps.model_copy(update=bad_steps)}
    )
    sizes = config.layout.model_copy(update={"processes": None, **LAYOUTS[layout]})
    output = str(Path(config_file).parent / name)
    config = config.model_copy(update={"output": output, "layout": sizes, "training": training})
    platform = get("cpu")
    platform.activate()
    return TrainingRun(config, platform.build_groups(config), platform, RunRequests())


def run_steps(state: TrainingState, steps: int, tiles: int | None = None) -> list[tuple[float, float]]:
    """Train for some steps; the loss and gradient norm of each."""
    stream = batches(state.config, state.groups, state.consumed_sequences, tiles)
    found = []
    for _ in range(steps):
        figures = train_step(state, stream)
        state.consumed_sequences += state.config.training.global_batch_size
        found.append((figures.losses.loss, figures.grad_norm))
    return found


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """Copies of all weights and of the optimizer's state on this rank."""
    found = {
        f"{index}/{name}": parameter.detach().clone()
        for index, model in enumerate(state.models)
        for name, parameter in model.named_parameters()
    }
    inner = state.optimizer.optimizer
    for number, group in enumerate(inner.param_groups):
        for position, parameter in enumerate(group["params"]):
            found[f"main/{number}/{position}"] = parameter.detach().clone()
            for key, value in inner.state[parameter].items():
                found[f"{key}/{number}/{position}"] = value.clone()
    return found


def unequal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not bitwise identical in both."""
    names = first.keys() | second.keys()
    return sorted(n for n in names if n not in first or n not in second or not torch.equal(first[n], second[n]))
