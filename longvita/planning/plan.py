"""A plan as a table for the terminal and as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from longvita.config.schema import Config
from longvita.planning.hardware import Hardware
from longvita.planning.memory import StageMemory, fits
from longvita.planning.search import Candidate
from longvita.planning.throughput import StepTime

COLUMNS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "vision_features": "incl. features",
    "loss_head": "incl. head",
    "communication": "incl. buffers",
    "kv_cache": "KV cache",
    "reserved": "reserved",
    "offloaded": "in the host",
    "total": "total",
}
"""Fields of StageMemory and what the table calls them."""


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What `longvita plan` found out."""

    name: str
    """Of the config."""
    world_size: int
    hardware: Hardware
    layout: str
    """Parallel sizes and recomputation, in words."""
    stages: list[StageMemory]
    """Empty where the config cannot be laid out on these devices at all."""
    time: StepTime | None
    """None for a config that answers."""
    candidates: list[Candidate]
    """Layouts that fit: the nearest ones, or with --search the fastest."""
    problem: str = ""
    """Why there is no plan of the config's own layout."""
    fitting: int = 0
    """Layouts that fit, those of `candidates` among them."""
    order: str = ""
    """In which order they are, in words."""

    @property
    def fits(self) -> bool:
        """Whether every stage fits the device."""
        return bool(self.stages) and fits(self.stages, self.hardware)


def gib(size: float) -> str:
    """Bytes in GiB, or in MiB below 0.1 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 or not size else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds to three digits, all of them from 100 on."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def describe(config: Config) -> str:
    """Parallel sizes and recomputation of a config."""
    layout, training = config.layout, config.training
    sizes = f"TP{layout.tensor_parallel} PP{layout.pipeline_parallel} CP{layout.context_parallel}"
    if layout.virtual_pipeline > 1:
        sizes += f" VP{layout.virtual_pipeline}"
    recompute = training.recompute
    words = "no recomputation" if recompute.granularity == "none" else f"{recompute.granularity} recomputation"
    if recompute.granularity == "full":
        words = "all layers recomputed"
        if recompute.method == "block":
            words = f"{recompute.num_layers} layers recomputed"
    extra = [
        "tower recomputed" if recompute.vision else "",
        "inputs offloaded" if recompute.offload else "",
        f"MLP by {training.mlp_chunk_size}" if training.mlp_chunk_size else "",
    ]
    parts = [sizes, f"micro batch {training.micro_batch_size}", words, *filter(None, extra)]
    return ", ".join(parts)


def as_data(plan: RunPlan) -> dict[str, Any]:
    """Plain data for --json; bytes and seconds."""
    return {
        "config": plan.name,
        "devices": plan.world_size,
        "hardware": plan.hardware.name,
        "memory": plan.hardware.memory,
        "fits": plan.fits,
        "problem": plan.problem,
        "stages": [_stage_data(stage) for stage in plan.stages],
        "step": dataclasses.asdict(plan.time) if plan.time else None,
        "fitting_layouts": plan.fitting,
        "layouts": [_candidate_data(candidate, plan.candidates) for candidate in plan.candidates],
    }


def _stage_data(stage: StageMemory) -> dict[str, Any]:
    fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    fields.pop("moments")
    return {**fields, "total": stage.total}


def _candidate_data(candidate: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "overrides": candidate.overrides,
        "bytes": max(stage.total for stage in candidate.stages),
        "step": dataclasses.asdict(candidate.time),
        "reason": candidate.reason(candidates[0]),
    }


def show(plan: RunPlan, console: Console) -> None:
    """Prints tables and the verdict."""
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    say(f"{plan.name} on {plan.world_size} x {plan.hardware.name} of {gib(plan.hardware.memory)}: {plan.layout}")
    if plan.problem:
        say(plan.problem)
    if plan.stages:
        console.print(_stage_table(plan.stages))
    if plan.time is not None:
        say(time_text(plan.time))
    if plan.stages:
        say(verdict(plan))
    if not plan.candidates and not plan.fits and plan.time is not None:
        say("No layout of so many of these devices fits.")
    if plan.candidates:
        say(heading(plan))
        console.print(_candidate_table(plan.candidates))
        say("The first as overrides:\n" + " ".join(plan.candidates[0].overrides))


def verdict(plan: RunPlan) -> str:
    """Whether the plan fits, and by how much."""
    fullest = max(plan.stages, key=lambda stage: stage.total)
    left = plan.hardware.memory - fullest.total
    away, share = max(stage.offloaded for stage in plan.stages), plan.hardware.host_share()
    if left >= 0 and away > share:
        return (
            f"It does not fit: {gib(away)} of a device go to the host, whose share for each is {gib(share)} "
            f"({plan.hardware.devices_per_node} devices a node; --host-memory says otherwise)."
        )
    if left >= 0:
        return f"It fits: stage {fullest.stage} is fullest and leaves {gib(left)}."
    over = [each.stage for each in plan.stages if each.total > plan.hardware.memory and each is not fullest]
    others = f"; too full too: {', '.join(map(str, over))}" if over else ""
    return f"It does not fit: stage {fullest.stage} lacks {gib(-left)}{others}."


def heading(plan: RunPlan) -> str:
    """What the layouts below it are."""
    return f"{plan.fitting} layouts fit, each with its fastest recomputation; here {plan.order}:"


def time_text(time: StepTime) -> str:
    """One line about a step."""
    parts = {
        "arithmetic and memory": time.compute,
        "TP": time.tensor_parallel,
        "CP": time.context_parallel,
        "bubble": time.pipeline_bubble,
        "DP": time.data_parallel,
        "offload": time.offload,
        "optimizer": time.optimizer,
    }
    said = ", ".join(
        f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds >= 0.001 * time.seconds
    )
    return (
        f"A step takes {duration(time.seconds)} by assumption ({said}): {time.tokens_per_second:,.0f} tokens/s, "
        f"MFU {time.mfu:.0%}."
    )


def _stage_table(stages: Sequence[StageMemory]) -> Table:
    shown = [name for name in COLUMNS if any(getattr(stage, name) for stage in stages)]
    table = Table("stage", "layers", *(COLUMNS[name] for name in shown), "fullest with")
    for stage in stages:
        numbers = [gib(getattr(stage, name)) for name in shown]
        table.add_row(str(stage.stage), str(stage.layers), *numbers, stage.contents)
    return table


def _candidate_table(candidates: Sequence[Candidate]) -> Table:
    table = Table("", "layout", "memory", "step", "MFU", "why")
    for number, candidate in enumerate(candidates, 1):
        fullest = max(stage.total for stage in candidate.stages)
        time = candidate.time
        table.add_row(
            str(number), describe(candidate.config), gib(fullest), duration(time.seconds), f"{time.mfu:.0%}",
            candidate.reason(candidates[0]),
        )  # fmt: skip
    return table
