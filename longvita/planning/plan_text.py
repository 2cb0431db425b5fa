"""Sentences and numbers of a plan, for the terminal and the page."""

from __future__ import annotations

from longvita.config.schema import Config
from longvita.planning.plan import RunPlan
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
"""Fields of StageMemory and their titles."""
CANDIDATE_COLUMNS = ("layout", "memory", "step", "MFU", "why")


def gib(size: float) -> str:
    """Format bytes in GiB, or in MiB below 0.1 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 or not size else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Format seconds to three digits, or to the second from 100 on."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def describe(config: Config) -> str:
    """Describe the parallel sizes and the recomputation of a config."""
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
    return ", ".join([sizes, f"micro batch {training.micro_batch_size}", words, *filter(None, extra)])


def verdict(plan: RunPlan) -> str:
    """State whether the plan fits, and by how much."""
    fullest = max(plan.stages, key=lambda stage: stage.total)
    left = plan.hardware.memory - fullest.total
    offloaded, host = max(stage.offloaded for stage in plan.stages), plan.hardware.host_share()
    if left >= 0 and offloaded > host:
        return (
            f"It does not fit: a device offloads {gib(offloaded)} to the host, which has {gib(host)} for each "
            f"({plan.hardware.devices_per_node} devices a node; --host-memory overrides the node's memory)."
        )
    if left >= 0:
        return f"It fits: stage {fullest.stage} is fullest and leaves {gib(left)}."
    over = [each.stage for each in plan.stages if each.total > plan.hardware.memory and each is not fullest]
    others = f"; too full as well: {', '.join(map(str, over))}" if over else ""
    return f"It does not fit: stage {fullest.stage} lacks {gib(-left)}{others}."


def heading(plan: RunPlan) -> str:
    """Introduce the list of layouts."""
    return f"{plan.fitting} layouts fit, each with its fastest recomputation; here {plan.order}:"


def time_text(time: StepTime) -> str:
    """Describe the time of a step in one line."""
    parts = [(name, seconds) for name, seconds in time.parts().items() if seconds >= 0.001 * time.seconds]
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts)
    return (
        f"A step takes {duration(time.seconds)} by assumption ({shown}): {time.tokens_per_second:,.0f} tokens/s, "
        f"MFU {time.mfu:.0%}."
    )


def candidate_cells(one: Candidate, first: Candidate) -> list[str]:
    """Return the entries of CANDIDATE_COLUMNS for a layout, next to the first one of the list."""
    time = one.time
    return [describe(one.config), gib(one.fullest.total), duration(time.seconds), f"{time.mfu:.0%}", one.reason(first)]
