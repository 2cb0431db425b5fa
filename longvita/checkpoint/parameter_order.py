"""parameter_order.json: where each parameter lies in the optimizer's buffers, and the versions of what decides it.

Megatron's distributed optimizer keeps master weights and moments in flat buffers, in the order in which layers register
their parameters. A format that stores the buffers as they are (dp_reshardable) holds no names: where a library
registers its parameters in another order, each would get another one's values without an error. Two commits of
MindSpeed 0.16.0 differ so. The fully reshardable format stores every parameter by name, at any layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longvita.checkpoint.contents import FULLY_RESHARDABLE, optimizer_buffers
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.same_run import config_field
from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.config.layout_text import UNEVEN_STAGES, layout_text
from longvita.config.schema import LayoutConfig
from longvita.model.build import global_names
from longvita.platforms.base import Platform
from longvita.processes import from_all_ranks, raise_on_all_ranks

PARAMETER_ORDER = "parameter_order.json"
"""Its name in a checkpoint; readable without this project."""

_SETTINGS = (
    "layout.virtual_pipeline",
    *(f"layout.{name}" for name in UNEVEN_STAGES),
    "training.overlap_grad_reduce",
    "training.recompute.vision",
)
"""Fields that a run may change and that change the places: layers of a stage and chunk, and the size of buckets."""


class BufferPlace(NamedTuple):
    """Where a parameter lies in the optimizer's buffers of its pipeline stage."""

    name: str
    """With the layer's number in the whole model."""
    buffer: int
    dtype: str
    """Of the parameters in the buffer."""
    bucket: int
    """Within the buffer."""
    start: int
    """First element within the bucket, so that padding between buckets does not count."""
    numel: int

    def __str__(self) -> str:
        elements = f"elements {self.start:,} to {self.start + self.numel:,}"
        return f"buffer {self.buffer} ({self.dtype}), bucket {self.bucket}, {elements}"


def buffer_places(state: TrainingState) -> list[BufferPlace]:
    """The trained parameters of this process's stage, in the order of the buffers."""
    names = {parameter: name for model in state.models for name, parameter in global_names(model)}
    return [
        BufferPlace(
            names[parameter],
            number,
            str(buffer.param_dtype).removeprefix("torch."),
            bucket,
            start - buffer.buckets[bucket].offset,
            end - start,
        )
        for number, buffer in enumerate(optimizer_buffers(state))
        for parameter, (start, end, bucket) in buffer.param_index_map.items()
    ]


def order_of_stages(state: TrainingState) -> dict[str, Any]:
    """The content of the file for a state: every stage's places. A collective over the stages.

    The ranks of a stage have the same places: tensor parallel splits each parameter evenly.
    """
    return order_record(state.platform, from_all_ranks(buffer_places(state), state.groups.pp))


def order_record(platform: Platform, stages: Sequence[Sequence[BufferPlace]] = ()) -> dict[str, Any]:
    """The content of the file; a checkpoint of weights alone has no stages, as it has no buffers."""
    places = [[place._asdict() for place in stage] for stage in stages]
    return {"versions": platform.layer_versions(), "stages": places}


def check_parameter_order(folder: Path, sharding_type: str, facts: dict[str, Any], state: TrainingState) -> None:
    """Raise CheckpointError on all ranks if the optimizer's state would be loaded into other parameters. A collective.

    facts: of the run in the checkpoint, which was saved at the TP and PP of `state`.
    """
    if sharding_type == FULLY_RESHARDABLE:
        return
    stages, versions_saved = raise_on_all_ranks(lambda: _read(folder, sharding_type, state), error=CheckpointError)
    stage = state.groups.pp_rank
    own = stage, _difference(stages[stage], buffer_places(state)), _text(state.platform.layer_versions())
    found = sorted({rank for rank in from_all_ranks(own) if rank[1]})
    if not found:
        return
    differences = sorted({f"pipeline stage {stage}: {text}" for stage, text, _ in found})
    settings = _changed_settings(facts["config"], dump(state.config))
    versions = sorted({f"now with {text}" for *_, text in found})
    causes = "; ".join([f"saved with {_text(versions_saved)}", *versions, *settings])
    raise CheckpointError(
        f"{folder} stores the optimizer's state as {sharding_type}, by place in its buffers, and parameters have other "
        f"places here: {'; '.join(differences)}. It was {causes}. "
        f"{_fix(folder, LayoutConfig.model_validate(facts['config']['layout']))}"
    )


def _read(folder: Path, sharding_type: str, state: TrainingState) -> tuple[list[list[BufferPlace]], dict[str, str]]:
    """The places of every stage, and the versions that the checkpoint was saved with."""
    path = folder / PARAMETER_ORDER
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stages = [[BufferPlace(**place) for place in stage] for stage in record["stages"]]
        versions = dict(record["versions"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} stores the optimizer's state as {sharding_type}, by place in its buffers, and has no "
            f"{PARAMETER_ORDER}: nothing shows whether this run has the same order of parameters. fix: if it was saved "
            f"before checkpoints recorded their order, convert it to {FULLY_RESHARDABLE} with the longvita and the "
            f"libraries that saved it; or start from the weights (checkpoint.initial={folder})"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})") from error
    if len(stages) != state.groups.pp_size:
        raise CheckpointError(f"{path} has {len(stages)} pipeline stages; this run has {state.groups.pp_size}")
    return stages, versions


def _fix(folder: Path, saved: LayoutConfig) -> str:
    convert = f"longvita convert --from {folder} --to FOLDER --format checkpoint --optimizer {FULLY_RESHARDABLE}"
    return (
        "fix: resume with the versions and settings that it was saved with; or with those versions run "
        f"`{convert} --layout {layout_text(saved)}`, which stores the state by name, and convert FOLDER back with the "
        f"present ones (docs/checkpoints.md); or start from the weights (checkpoint.initial={folder})"
    )


def _text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _changed_settings(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    values = [(name, config_field(saved, name), config_field(current, name)) for name in _SETTINGS]
    return [f"{name} is {new!r}, in the checkpoint {old!r}" for name, old, new in values if old != new]


def _difference(saved: list[BufferPlace], own: list[BufferPlace]) -> str:
    """How the places of a stage differ from the saved ones, by its first such parameter; empty if they do not."""
    old, new = [place.name for place in saved], [place.name for place in own]
    shared = {*old} & {*new}
    added, gone = [name for name in new if name not in shared], [name for name in old if name not in shared]
    parts = [
        f"{len(names)} of {len(everything)} parameters are {where}, the first is {names[0]}"
        for names, everything, where in ((added, new, "new"), (gone, old, "in the checkpoint alone"))
        if names
    ]
    if parts:
        return " and ".join(parts)
    moved = [name for name, before in zip(new, old, strict=True) if name != before]
    if moved:
        first = moved[0]
        return (
            f"{len(moved)} of {len(own)} parameters are in another order, the first is {first} at place "
            f"{new.index(first) + 1}, in the checkpoint at place {old.index(first) + 1}"
        )
    shifted = [(place, before) for place, before in zip(own, saved, strict=True) if place != before]
    if not shifted:
        return ""
    place, before = shifted[0]
    return (
        f"{len(shifted)} of {len(own)} parameters are in the same order at other elements, the first is {place.name} "
        f"in {place}, in the checkpoint in {before}"
    )
