"""Load a training checkpoint: the complete state of a run, or the weights alone. Both are collectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import CheckpointingException
from torch.distributed.checkpoint import CheckpointException

from longvita.checkpoint.contents import FULLY_RESHARDABLE, layout_sizes, sharded_state, sharded_weights
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.parameter_order import check_parameter_order
from longvita.checkpoint.same_run import check_optimizer_format, check_same_run, run_facts
from longvita.checkpoint.step_history import StepHistory
from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.model.long_vita import EXTRA_STATE, LongVITA
from longvita.platforms.base import Platform

_MISFITS = (CheckpointingException, CheckpointException, KeyError)
"""Raised by Megatron and torch when a tensor or a parameter group is missing or has another shape."""


@torch.no_grad()  # fp32 main parameters are views of the weights, which are written in place
def load_state(state: TrainingState, folder: Path, foreign: bool = False) -> None:
    """Load a run's state from a checkpoint, at any layout that its optimizer format allows.

    Learning rates come from the config, everything else from the checkpoint. Random states are restored at the same
    layout of the same platform only.

    foreign: load a fully reshardable optimizer state without the optimizer's own load_state_dict, which not every
    platform's optimizer supports (see longvita.convert.optimizer_format).

    Raises CheckpointError when the checkpoint is of another run (a field that the state depends on differs), in a
    format that cannot be loaded here, or of weights alone, or when its format stores parameters by place and they have
    other places here.
    """
    common = dist_checkpointing.load_common_state_dict(str(folder))
    facts = run_facts(common, folder)
    check_same_run(facts["config"], dump(state.config), folder)
    sharding_type = dist_checkpointing.load_content_metadata(preloaded_state_dict=common)["distrib_optim_sharding_type"]
    check_optimizer_format(sharding_type, facts, state, folder, foreign)
    check_parameter_order(folder, sharding_type, facts, state)
    settings = [{k: v for k, v in g.items() if k not in ("params", "step")} for g in state.optimizer.param_groups]
    try:
        loaded = dist_checkpointing.load(sharded_state(state, sharding_type, loading=True), str(folder))
        _fill_models(state.models, loaded["weights"])
        if foreign and sharding_type == FULLY_RESHARDABLE:
            _fill_optimizer(state.optimizer, loaded["optimizer"])
        else:
            state.optimizer.load_state_dict(loaded["optimizer"])
    except _MISFITS as error:
        raise CheckpointError(f"{folder} does not fit this run: {_reason(error)}") from error
    for group, kept in zip(state.optimizer.param_groups, settings, strict=True):
        group.update(kept)
        if "step" in group:
            group["step"] = state.platform.optimizer_step(int(group["step"]))
    state.scheduler.num_steps = 0
    state.scheduler.load_state_dict(facts["scheduler"])
    state.iteration, state.consumed_sequences = facts["iteration"], facts["consumed_sequences"]
    state.history = StepHistory.from_facts(facts["history"])
    state.sample_accounting = SampleAccounting.from_facts(facts["account"])
    if (facts["layout"], facts["platform"]) == (layout_sizes(state.groups), state.platform.name):
        state.platform.set_rng_state(facts["random_states"][dist.get_rank()])


def load_weights(models: Sequence[LongVITA], folder: Path, platform: Platform) -> None:
    """Fill built chunks with a checkpoint's weights alone, at any layout.

    Raises CheckpointError naming the tensor and both shapes when the models differ.
    """
    try:
        loaded = dist_checkpointing.load({"weights": sharded_weights(models, platform)}, str(folder))
        _fill_models(models, loaded["weights"])
    except _MISFITS as error:
        raise CheckpointError(f"the weights of {folder} do not fit the model: {_reason(error)}") from error


def _fill_models(models: Sequence[LongVITA], loaded: dict[str, Any]) -> None:
    """Raise KeyError for a parameter or buffer that only the models or only the loaded weights have."""
    for index, model in enumerate(models):
        left = model.load_state_dict(loaded[f"chunk{index}"], strict=False)
        wrong = [name for name in (*left.missing_keys, *left.unexpected_keys) if not name.endswith(EXTRA_STATE)]
        if wrong:
            raise KeyError(f"weights that are on one side only: {', '.join(wrong)}")


def _fill_optimizer(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Fill Megatron's distributed optimizer, parameter by parameter, with fully reshardable state."""
    steps = {group["step"] for group in loaded["optimizer"]["param_groups"] if "step" in group}
    for one in optimizer.chained_optimizers:
        one.load_parameter_state_from_fully_reshardable(loaded["param_state"])
        for group in one.optimizer.param_groups:
            group["step"] = max(steps, default=0)


def _reason(error: BaseException) -> str:
    """The error's message; torch wraps those of several ranks into one with all their tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(sorted({str(failure) for failure, _ in error.failures.values()}))
    return str(error)
