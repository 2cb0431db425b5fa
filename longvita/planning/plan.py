"""The plan of a run: memory of each stage, time of a step, and layouts that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from longvita.config.errors import ConfigError
from longvita.config.schema import Config
from longvita.planning.batch_contents import BatchContents
from longvita.planning.hardware import Hardware, platform_problems
from longvita.planning.memory import StageMemory, fits, plan_generation, plan_memory
from longvita.planning.search import Candidate, nearest, search
from longvita.planning.throughput import StepTime, step_time

MAX_SHOWN = 10
"""Layouts that a search shows."""


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Result of `longvita plan`."""

    config: Config
    world_size: int
    hardware: Hardware
    stages: list[StageMemory]
    """Empty where the config cannot run on these devices at all."""
    time: StepTime | None = None
    """None for a config without training data, which is planned for generation."""
    candidates: Sequence[Candidate] = ()
    """Layouts that fit: the nearest ones, or with a search the fastest."""
    refusal: ConfigError | None = None
    """Why the config's own layout has no plan."""
    fitting: int = 0
    """Number of layouts that fit, those of `candidates` included."""
    order: str = ""
    """Order of `candidates`, in words."""

    @property
    def fits(self) -> bool:
        """Whether every stage fits the device."""
        return bool(self.stages) and fits(self.stages, self.hardware)


def make_plan(
    config: Config, world_size: int, hardware: Hardware, contents: Sequence[BatchContents], searched: bool = False
) -> RunPlan:
    """Plan a training run whose micro batches have one of `contents`; the first one counts for the time.

    A run that does not fit gets the nearest layouts that do. searched: find the fastest layouts, also where the
    config's own layout cannot run. Raises ConfigError where it cannot and nothing is searched.
    """
    try:
        problems = platform_problems(config, hardware)
        if problems:
            raise ConfigError(problems)
        stages = plan_memory(config, world_size, hardware, contents)
        plan = RunPlan(
            config, world_size, hardware, stages, step_time(config, world_size, hardware, stages, contents[0])
        )
    except ConfigError as error:
        if not searched:
            raise
        plan = RunPlan(config, world_size, hardware, [], refusal=error)
    if plan.fits and not searched:
        return plan
    found = search(config, world_size, hardware)
    if searched:
        shown, order = found[:MAX_SHOWN], "the fastest, and what the others lose against the first"
    else:
        shown, order = nearest(config, found), "those of the least change, and of these the fastest"
    return dataclasses.replace(plan, candidates=shown, fitting=len(found), order=order)


def make_generation_plan(config: Config, world_size: int, hardware: Hardware) -> RunPlan:
    """Plan the memory of a config without training data, which generates."""
    return RunPlan(config, world_size, hardware, plan_generation(config, hardware))


def as_data(plan: RunPlan) -> dict[str, Any]:
    """Return the plan as plain data for --json; bytes and seconds."""
    return {
        "config": plan.config.name,
        "devices": plan.world_size,
        "hardware": plan.hardware.name,
        "memory": plan.hardware.memory,
        "fits": plan.fits,
        "problem": str(plan.refusal or ""),
        "stages": [_stage_data(stage) for stage in plan.stages],
        "step": dataclasses.asdict(plan.time) if plan.time else None,
        "fitting_layouts": plan.fitting,
        "layouts": [
            {
                "overrides": candidate.overrides,
                "bytes": candidate.fullest.total,
                "step": dataclasses.asdict(candidate.time),
                "reason": candidate.reason(plan.candidates[0]),
            }
            for candidate in plan.candidates
        ],
    }


def _stage_data(stage: StageMemory) -> dict[str, Any]:
    fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    fields.pop("moments")
    return {**fields, "total": stage.total}
