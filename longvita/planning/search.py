"""Search the layouts of a run on a number of devices: those that fit, ordered by planned time."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longvita.config import ConfigError
from longvita.config.checks import check_world_size, find_problems
from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage
from longvita.planning.batch_contents import worst_contents
from longvita.planning.hardware import Hardware, platform_problems
from longvita.planning.memory import StageMemory, fits, stage_memories, with_values
from longvita.planning.parameters import state_bytes
from longvita.planning.throughput import StepTime, step_time

MLP_CHUNK = 8192
"""Rows of an MLP chunk: large enough for full speed (assumption)."""
MICRO_BATCHES = (1, 2, 4)
VIRTUAL_PIPELINES = (1, 2)
OVERRIDES = (
    "layout.tensor_parallel",
    "layout.sequence_parallel",
    "layout.pipeline_parallel",
    "layout.virtual_pipeline",
    "layout.context_parallel",
    "training.micro_batch_size",
    "training.recompute.granularity",
    "training.recompute.method",
    "training.recompute.num_layers",
    "training.recompute.vision",
    "training.recompute.offload",
    "training.mlp_chunk_size",
)
"""Fields of the config that the search chooses."""


@dataclass(frozen=True)
class Candidate:
    """A layout that fits."""

    config: Config
    stages: list[StageMemory]
    time: StepTime

    @property
    def fullest(self) -> StageMemory:
        """The stage with most memory."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def overrides(self) -> list[str]:
        """Overrides of `longvita train` and `longvita plan` that select this layout."""
        return [f"{name}={_yaml(operator.attrgetter(name)(self.config))}" for name in OVERRIDES]

    def reason(self, first: Candidate) -> str:
        """Name its largest parts of time, or its difference in time from the first of a list; and its fullest stage."""
        where = f"stage {self.fullest.stage} is fullest ({self.fullest.contents})"
        own, others = self.time.parts(), first.time.parts()
        if first is self:
            largest = sorted(own, key=lambda name: -own[name])[:2]
            parts = ", ".join(f"{own[name] / self.time.seconds:.0%} {name}" for name in largest if own[name] > 0)
            return f"{parts}; {where}"
        slower = self.time.seconds - first.time.seconds
        change = {name: own[name] - others[name] for name in own}
        name = max(change, key=lambda each: change[each] if slower >= 0 else -change[each])
        more = "more" if slower >= 0 else "less"
        return f"{slower / first.time.seconds:+.0%}: {abs(change[name]):,.3g} s {more} {name}; {where}"


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def search(config: Config, world_size: int, hardware: Hardware) -> list[Candidate]:
    """Find every layout of `world_size` devices that fits, each with its fastest recomputation; the fastest first.

    TP stays within a node and comes with sequence parallelism; the global batch does not change.
    """
    found = []
    for layout in _layouts(config, world_size, hardware):
        sizes: list[Candidate] = []
        for micro in MICRO_BATCHES:
            sized = with_values(layout, "training", micro_batch_size=micro)
            if not _is_valid(sized, world_size, hardware):
                continue
            candidate = _fastest_recomputation(sized, world_size, hardware)
            if candidate is None:
                break  # a larger micro batch needs more memory
            sizes.append(candidate)
        if sizes:
            found.append(min(sizes, key=_seconds))
    return sorted(found, key=_seconds)


def _seconds(candidate: Candidate) -> float:
    return candidate.time.seconds


def nearest(config: Config, candidates: Sequence[Candidate], count: int = 3) -> list[Candidate]:
    """Return the candidates that differ least from a config that does not fit: fewest other sizes, then fastest."""
    sizes = operator.attrgetter("tensor_parallel", "pipeline_parallel", "context_parallel", "virtual_pipeline")

    def distance(candidate: Candidate) -> tuple[int, float]:
        pairs = zip(sizes(candidate.config.layout), sizes(config.layout), strict=True)
        return sum(other != own for other, own in pairs), candidate.time.seconds

    return sorted(candidates, key=distance)[:count]


def _layouts(config: Config, world_size: int, hardware: Hardware) -> Iterator[Config]:
    sizes = itertools.product(
        _powers(hardware.devices_per_node),
        range(1, min(config.model.language.num_layers, world_size) + 1),
        _powers(world_size),
        VIRTUAL_PIPELINES,
    )
    for tp, pp, cp, virtual in sizes:
        if world_size % (tp * pp * cp) == 0 and (pp > 1 or virtual == 1):
            yield with_values(
                config,
                "layout",
                tensor_parallel=tp,
                sequence_parallel=tp > 1,
                pipeline_parallel=pp,
                virtual_pipeline=virtual,
                context_parallel=cp,
                ulysses=None,
                num_layers_in_first_pipeline_stage=None,
                num_layers_in_last_pipeline_stage=None,
                processes=None,
            )


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _is_valid(config: Config, world_size: int, hardware: Hardware) -> bool:
    try:
        check_world_size(config, world_size)
    except ConfigError:
        return False
    return not find_problems(config) and not platform_problems(config, hardware)


def _fastest_recomputation(config: Config, world_size: int, hardware: Hardware) -> Candidate | None:
    """The layout with its fastest recomputation that fits; None if none does."""
    ends = [state_bytes(config, world_size, stage) for stage in {0, config.layout.pipeline_parallel - 1}]
    if min(state.parameters + state.gradients + state.optimizer for state in ends) > hardware.usable():
        return None
    choices = [with_values(config, "training", **values) for values in _recomputations(config)]
    if _stages_that_fit(choices[-1], world_size, hardware) is None:
        return None  # the one that saves most memory is not enough
    found = []
    for choice in choices:
        stages = _stages_that_fit(choice, world_size, hardware)
        if stages is None:
            continue
        time = step_time(choice, world_size, hardware, stages, worst_contents(config)[0])
        found.append(Candidate(choice, stages, time))
        if not choice.training.recompute.offload and choice.training.mlp_chunk_size is None:
            break  # the choices after it recompute more
    return min(found, key=_seconds, default=None)


def _stages_that_fit(config: Config, world_size: int, hardware: Hardware) -> list[StageMemory] | None:
    """Plan each stage; None as soon as one does not fit. First those at the ends of the pipeline, which are fullest."""
    count = config.layout.pipeline_parallel
    found = []
    for stage in stage_memories(config, world_size, hardware, order=list(dict.fromkeys([0, count - 1, *range(count)]))):
        if not fits([stage], hardware):
            return None
        found.append(stage)
    return sorted(found, key=lambda stage: stage.stage)


def _recomputations(config: Config) -> Iterator[dict[str, Any]]:
    """Choices of recomputation, from none to all, as fields of `training`."""
    recompute = config.training.recompute
    most = max(layers_per_stage(config)) // config.layout.virtual_pipeline
    trains_vision = "vision" in config.training.trainable
    steps = sorted({round(most * fraction) for fraction in (0.25, 0.5, 0.75)} - {0, most})
    plain = [{"granularity": "none", "num_layers": 1, "method": "block"}]
    plain += [{"granularity": "full", "method": "block", "num_layers": count} for count in steps]
    plain += [{"granularity": "full", "method": "uniform", "num_layers": 1}]
    for vision in (False, True)[: 1 + trains_vision]:
        for values in plain:
            section = recompute.model_copy(update={"offload": False, "vision": vision, **values})
            yield {"recompute": section, "mlp_chunk_size": None}
    everything = {"granularity": "full", "method": "uniform", "num_layers": 1, "vision": trains_vision}
    for offload, chunk in ((False, MLP_CHUNK), (True, None), (True, MLP_CHUNK)):
        section = recompute.model_copy(update={**everything, "offload": offload})
        yield {"recompute": section, "mlp_chunk_size": chunk}
