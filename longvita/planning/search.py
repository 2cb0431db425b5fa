"""Search the layouts of a run on a number of devices: those that fit, ordered by planned time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longvita.config import ConfigError
from longvita.config.checks import check_world_size, find_problems
from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage
from longvita.planning.batch_contents import worst_contents
from longvita.planning.hardware import Hardware, platform_problems
from longvita.planning.memory import StageMemory, fits, stage_memories
from longvita.planning.parameters import state_bytes
from longvita.planning.throughput import StepTime, step_time

MLP_CHUNK = 8192
"""Rows of an MLP chunk: large enough for full speed (assumption)."""
MICRO_BATCHES = (1, 2, 4)
VIRTUAL_PIPELINES = (1, 2)


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
        layout, training = self.config.layout, self.config.training
        recompute = training.recompute
        values: dict[str, Any] = {
            "layout.tensor_parallel": layout.tensor_parallel,
            "layout.sequence_parallel": layout.sequence_parallel,
            "layout.pipeline_parallel": layout.pipeline_parallel,
            "layout.virtual_pipeline": layout.virtual_pipeline,
            "layout.context_parallel": layout.context_parallel,
            "training.micro_batch_size": training.micro_batch_size,
            "training.recompute.granularity": recompute.granularity,
            "training.recompute.method": recompute.method,
            "training.recompute.num_layers": recompute.num_layers,
            "training.recompute.vision": recompute.vision,
            "training.recompute.offload": recompute.offload,
            "training.mlp_chunk_size": training.mlp_chunk_size,
        }
        return [f"{name}={_yaml(value)}" for name, value in values.items()]

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
        best: Candidate | None = None
        for micro in MICRO_BATCHES:
            sized = _with(layout, training={"micro_batch_size": micro})
            if not _is_valid(sized, world_size, hardware):
                continue
            if min(_state(sized, world_size)) > hardware.usable():
                break
            candidate = _fastest_recomputation(sized, world_size, hardware)
            if candidate is None:
                break  # a larger micro batch needs more memory
            if best is None or candidate.time.seconds < best.time.seconds:
                best = candidate
        if best is not None:
            found.append(best)
    return sorted(found, key=lambda candidate: candidate.time.seconds)


def nearest(config: Config, candidates: Sequence[Candidate], count: int = 3) -> list[Candidate]:
    """Return the candidates that differ least from a config that does not fit: fewest other sizes, then fastest."""
    own = config.layout

    def distance(candidate: Candidate) -> tuple[int, float]:
        layout = candidate.config.layout
        sizes = ("tensor_parallel", "pipeline_parallel", "context_parallel", "virtual_pipeline")
        return sum(getattr(layout, name) != getattr(own, name) for name in sizes), candidate.time.seconds

    return sorted(candidates, key=distance)[:count]


def _layouts(config: Config, world_size: int, hardware: Hardware) -> Iterator[Config]:
    tensor = [size for size in _powers(hardware.devices_per_node) if world_size % size == 0]
    for tp in tensor:
        for pp in _divisors(world_size // tp):
            if pp > config.model.language.num_layers:
                continue
            for cp in _powers(world_size // tp // pp):
                if world_size % (tp * pp * cp):
                    continue
                for virtual in VIRTUAL_PIPELINES if pp > 1 else (1,):
                    yield _with(
                        config,
                        layout={
                            "tensor_parallel": tp,
                            "sequence_parallel": tp > 1,
                            "pipeline_parallel": pp,
                            "virtual_pipeline": virtual,
                            "context_parallel": cp,
                            "ulysses": None,
                            "num_layers_in_first_pipeline_stage": None,
                            "num_layers_in_last_pipeline_stage": None,
                            "processes": None,
                        },
                    )


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _with(config: Config, **sections: dict[str, Any]) -> Config:
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=changed)


def _is_valid(config: Config, world_size: int, hardware: Hardware) -> bool:
    try:
        check_world_size(config, world_size)
    except ConfigError:
        return False
    return not find_problems(config) and not platform_problems(config, hardware)


def _state(config: Config, world_size: int) -> list[int]:
    found = (state_bytes(config, world_size, stage) for stage in {0, config.layout.pipeline_parallel - 1})
    return [state.parameters + state.gradients + state.optimizer for state in found]


def _fastest_recomputation(config: Config, world_size: int, hardware: Hardware) -> Candidate | None:
    """The layout with its fastest recomputation that fits; None if none does."""
    best: Candidate | None = None
    contents = worst_contents(config)
    choices = list(_recomputations(config))
    if _stages_that_fit(_with(config, training=choices[-1]), world_size, hardware) is None:
        return None  # the one that saves most memory is not enough
    for update in choices:
        changed = _with(config, training=update)
        stages = _stages_that_fit(changed, world_size, hardware)
        if stages is None:
            continue
        candidate = Candidate(changed, stages, step_time(changed, world_size, hardware, stages, contents[0]))
        if best is None or candidate.time.seconds < best.time.seconds:
            best = candidate
        if not update["recompute"].offload and update["mlp_chunk_size"] is None:
            break  # the choices after it recompute more
    return best


def _stages_that_fit(config: Config, world_size: int, hardware: Hardware) -> list[StageMemory] | None:
    """Plan each stage; None as soon as one does not fit. First those at the ends of the pipeline, which are fullest."""
    count = config.layout.pipeline_parallel
    order = dict.fromkeys([0, count - 1, *range(count)])
    found = []
    for stage in stage_memories(config, world_size, hardware, order=list(order)):
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
    for vision in (False, True) if trains_vision else (False,):
        for values in plain:
            section = recompute.model_copy(update={"offload": False, "vision": vision, **values})
            yield {"recompute": section, "mlp_chunk_size": None}
    everything = {"granularity": "full", "method": "uniform", "num_layers": 1, "vision": trains_vision}
    for offload, chunk in ((False, MLP_CHUNK), (True, None), (True, MLP_CHUNK)):
        section = recompute.model_copy(update={**everything, "offload": offload})
        yield {"recompute": section, "mlp_chunk_size": chunk}
