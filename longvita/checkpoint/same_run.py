"""Whether a run may resume from a checkpoint: its config must agree, and its optimizer format must be loadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from longvita.checkpoint.contents import FULLY_RESHARDABLE, layout_sizes
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.config.schema import Config

_FIXED_FIELDS = (
    "seed",
    "data.sequence_length",
    "data.isolate_documents",
    "data.max_num_tiles",
    "data.max_num_frames",
    "data.max_fps",
    "data.frame_sampling",
    "training.trainable",
    "training.precision",
    "optimizer.vision_lr_mult",
    "optimizer.projector_lr_mult",
    "optimizer.vision_layer_decay",
)
"""Fields that a run may not change, in addition to the model's sizes and the data mix."""


def run_facts(common: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The facts of the run in a checkpoint's common state. Raises CheckpointError for a checkpoint of weights alone."""
    if "run" not in common:
        raise CheckpointError(
            f"{folder} holds weights alone: no run can resume from it; start from it (checkpoint.initial={folder})"
        )
    return common["run"]


def fields_of_another_run(folder: Path, config: Config) -> dict[str, Any]:
    """Fixed fields that a config changes, with the checkpoint's values.

    Raises CheckpointError for a checkpoint of weights alone.
    """
    saved = run_facts(dist_checkpointing.load_common_state_dict(str(folder)), folder)["config"]
    return {name: config_field(saved, name) for name in _differing(saved, dump(config))}


def check_same_run(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError when a fixed field of the config differs from the checkpoint's."""
    differences = [
        _difference(name, config_field(saved, name), config_field(current, name)) for name in _differing(saved, current)
    ]
    if differences:
        raise CheckpointError(
            f"{folder} is of another run: {'; '.join(differences)}. Resume with the old values, or start in another "
            f"folder (output=...), from these weights if wanted (checkpoint.initial={folder})"
        )


def _difference(name: str, saved: Any, current: Any) -> str:
    if name == "data.dataset" and list(saved) != list(current) and set(saved) == set(current):
        return f"{name} has its sources in the order {', '.join(current)}, in the checkpoint {', '.join(saved)}"
    return f"{name} is {current!r}, in the checkpoint {saved!r}"


def _differing(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    names = [name for name in _FIXED_FIELDS if config_field(saved, name) != config_field(current, name)]
    for part in ("vision", "projector", "language"):
        old, new = saved["model"][part], current["model"][part]
        names += [f"model.{part}.{key}" for key in new if old.get(key) != new[key]]
    return names + (["data.dataset"] if _mix(saved) != _mix(current) else [])


def _mix(config: dict[str, Any]) -> list[tuple]:
    """The sources in their order, which numbers the samples."""
    sources = config["data"]["dataset"]
    return [(name, source["ratio"], source["num"], source["data_paths"]) for name, source in sources.items()]


def config_field(values: Any, name: str) -> Any:
    """The value of a dotted name in a dumped config."""
    for key in name.split("."):
        values = values.get(key)
    return values


def check_optimizer_format(
    sharding_type: str, facts: dict[str, Any], state: TrainingState, folder: Path, foreign: bool
) -> None:
    """Raise CheckpointError when this platform, or this layout, cannot load the checkpoint's optimizer format.

    Formats other than the fully reshardable one hold the optimizer's state as one platform's process held it: cut
    for the layout it was saved at, with parameters in the order of that platform's layers.
    """
    platform, fix = state.platform, f"or start from the weights (checkpoint.initial={folder})"
    if sharding_type == FULLY_RESHARDABLE:
        if sharding_type == platform.optimizer_sharding_type or foreign:
            return
        convert = f"longvita convert --from {folder} --to FOLDER --format checkpoint --optimizer"
        raise CheckpointError(
            f"platform {platform.name} cannot load the optimizer of {folder}, which is {sharding_type}: make one that "
            f"it can by `{convert} {platform.optimizer_sharding_type} --layout LAYOUT`, {fix}"
        )
    if facts["platform"] != platform.name:
        raise CheckpointError(
            f"{folder} was saved on platform {facts['platform']} as {sharding_type}, in the order of its own layers: "
            f"on that platform `longvita convert --from {folder} --to FOLDER --format checkpoint --optimizer "
            f"{FULLY_RESHARDABLE} --layout LAYOUT` makes one for all, {fix}"
        )
    saved, current = facts["layout"], layout_sizes(state.groups)
    fixed = [name for name in ("tp", "pp") if saved[name] != current[name]]
    if fixed:
        kept = ", ".join(f"{name}={saved[name]}" for name in ("tp", "pp"))
        raise CheckpointError(
            f"{folder} is {sharding_type}, which loads at the TP and PP that it was saved at ({kept}) and any other cp "
            f"and dp; here {' and '.join(f'{name} is {current[name]}' for name in fixed)}. fix: use {kept}; or convert "
            f"it with {kept} to {FULLY_RESHARDABLE} and back at the new sizes (docs/checkpoints.md); {fix}"
        )
