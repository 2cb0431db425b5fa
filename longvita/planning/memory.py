"""The memory of each pipeline stage's ranks, which `longvita plan` compares with that of the device.

Weights, gradients and optimizer state are counted exactly; activations follow from the operators of one step; memory
of the platform's libraries is an assumption of longvita.planning.hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from longvita.config.checks import check_world_size
from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage, local_query_groups, replica_size
from longvita.planning.activation_timeline import Moment
from longvita.planning.activations import Activations, MicroBatchTimeline, rows_of_a_rank
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.planning.hardware import Hardware, hardware_of
from longvita.planning.parameters import ELEMENT_BYTES, StateBytes, state_bytes

KV_PAGE = 2048
"""Rows of a page of the KV cache (longvita.attention.kv_cache)."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on a rank of one pipeline stage; for each entry, the rank that has most."""

    stage: int
    layers: int
    """Language layers."""
    parameter_count: int
    """Parameters of the rank's TP shard, trained and frozen; without padding."""
    parameters: int
    """Bytes of weights, including the padding of Megatron's buffers."""
    gradients: int
    """Bytes of main gradients, fp32."""
    optimizer: int
    """Bytes of Adam's moments and, with bf16, the main weights, all fp32."""
    activations: int
    """Bytes of all tensors of a step at its highest moment; the four entries below are parts of it."""
    vision_features: int
    """Features of tiles, and tensors that the projector keeps."""
    loss_head: int
    """Selected rows, their gradients, the output weight's gradient, logits of a chunk."""
    communication: int
    """Buffers that collectives gather into."""
    by_kind: dict[str, int]
    """All parts of `activations`."""
    contents: str
    """Name of the contents with the highest peak: video or text."""
    kv_cache: int = 0
    """Bytes of keys and values in generation."""
    offloaded: int = 0
    """Bytes of offloaded layer inputs in the host's memory, rounded up by its allocator."""
    reserved: int = 0
    """Bytes of the device's software, and bytes lost between the allocator's blocks (assumption)."""
    moments: tuple[Moment, ...] = field(default=(), repr=False, compare=False)
    """The timeline of one micro batch."""
    waiting: float = 0
    """Micro batches that wait for their backward pass, without the current one."""
    traffic: int = 0
    """Bytes of all tensors that one micro batch makes."""

    @property
    def total(self) -> int:
        """Return the bytes on the device."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.kv_cache + self.reserved


def with_values(config: Config, section: str, **values: Any) -> Config:
    """Return a copy of a config with other values in one of its sections."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def plan_memory(
    config: Config, world_size: int, hardware: Hardware, contents: Sequence[BatchContents] | None = None
) -> list[StageMemory]:
    """Plan the memory of each pipeline stage of a training run over `world_size` processes.

    contents: possible contents of a micro batch; each stage is planned for those that take most memory. worst_contents
    when absent.
    Raises ConfigError when `world_size` is not a multiple of a replica or does not divide the batch.
    """
    return list(stage_memories(config, world_size, hardware, contents))


def stage_memories(
    config: Config,
    world_size: int,
    hardware: Hardware,
    contents: Sequence[BatchContents] | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[StageMemory]:
    """Yield the stages of plan_memory one by one. order: stages to plan; all from the first when absent."""
    replicas = check_world_size(config, world_size)
    training, layers = config.training, layers_per_stage(config)
    micro_batches = training.global_batch_size // (training.micro_batch_size * replicas)
    timelines: dict[tuple, MicroBatchTimeline] = {}
    for stage in range(len(layers)) if order is None else order:
        found = []
        for each in contents or worst_contents(config):
            # The stages between the ends differ only in the number of micro batches that wait.
            key = (stage == 0, stage == len(layers) - 1, layers[stage], each)
            if key not in timelines:
                timelines[key] = MicroBatchTimeline(config, hardware.layer_memory, each, stage)
            found.append((timelines[key].in_pipeline(stage, micro_batches), each.name))
        worst, name = max(found, key=lambda item: item[0].peak)
        offloaded = _offloaded(config, hardware, layers[stage], worst.waiting) if training.recompute.offload else 0
        state = state_bytes(config, world_size, stage)
        yield _stage(stage, layers[stage], state, worst, name, hardware, offloaded=offloaded)


def _offloaded(config: Config, hardware: Hardware, layers: int, waiting: float) -> int:
    """Count the bytes of layer inputs of all micro batches that wait for their backward pass, and of the current one.

    torch allocates pinned memory in powers of two (ATen/core/CachingHostAllocator.h, 2.13), unless the allocator's
    setting pinned_max_round_threshold_mb limits that.
    """
    rows = rows_of_a_rank(config, worst_contents(config)[0]).residual
    inputs = -(-layers // config.training.recompute.num_layers)
    each = rows * config.model.language.hidden_size * ELEMENT_BYTES[config.training.precision]
    if hardware.host_memory is not None:
        each = 1 << (each - 1).bit_length()
    return int((waiting + 1) * inputs * each)


def _stage(
    stage: int, layers: int, state: StateBytes, worst: Activations, contents: str, hardware: Hardware, **others: int
) -> StageMemory:
    return StageMemory(
        stage=stage,
        layers=layers,
        **vars(state),
        activations=worst.peak,
        vision_features=worst.by_kind.get("vision features", 0),
        loss_head=worst.by_kind.get("head", 0),
        communication=worst.by_kind.get("communication", 0),
        by_kind=worst.by_kind,
        contents=contents,
        reserved=hardware.reserved + int(hardware.fragmentation * worst.peak),
        moments=tuple(worst.moments),
        waiting=worst.waiting,
        traffic=worst.allocated,
        **others,
    )


def plan_generation(config: Config, hardware: Hardware | None = None) -> list[StageMemory]:
    """Plan the memory of each pipeline stage in generation: weights, the KV cache of `inference.max_seq_len` tokens,
    and the activations of one prefill chunk, of only frames or only text.
    """
    hardware = hardware or hardware_of(config.platform)
    inference = config.inference
    prefilling = with_values(config, "data", sequence_length=inference.prefill_chunk_size)
    prefilling = with_values(prefilling, "training", trainable=["language"], micro_batch_size=1, mlp_chunk_size=None)
    rows = -(-inference.max_seq_len // (config.layout.context_parallel * KV_PAGE)) * KV_PAGE
    element = ELEMENT_BYTES[config.training.precision]
    stages = []
    for stage, layers in enumerate(layers_per_stage(config)):
        count = state_bytes(prefilling, replica_size(config), stage).parameter_count
        state = StateBytes(parameter_count=count, parameters=count * element, gradients=0, optimizer=0)
        passes = [
            (MicroBatchTimeline(prefilling, hardware.layer_memory, each, stage, forward_only=True), each.name)
            for each in worst_contents(prefilling)
        ]
        worst, name = max(passes, key=lambda item: item[0].timeline.peak)
        each = 2 * layers * local_query_groups(config) * config.model.language.head_dim * element
        memory = _stage(stage, layers, state, worst.with_waiting([]), name, hardware, kv_cache=rows * each)
        stages.append(memory)
    return stages


def fits(stages: Sequence[StageMemory], hardware: Hardware) -> bool:
    """Whether every stage fits the device, and its offloaded tensors the device's part of the host's memory."""
    return all(stage.total <= hardware.memory and stage.offloaded <= hardware.host_share() for stage in stages)
