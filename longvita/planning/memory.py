"""The memory of each pipeline stage's ranks: what `longvita plan` compares with the device's.

Weights, gradients and optimizer state are counted exactly; activations follow the operators of one step; what the
platform's libraries take for themselves is an assumption of longvita.planning.hardware.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from longvita.config.checks import check_world_size
from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage, local_query_groups
from longvita.planning.activation_timeline import Moment
from longvita.planning.activations import Activations, History, history, rows_of_a_rank
from longvita.planning.batch_contents import Contents, worst_contents
from longvita.planning.hardware import Hardware, hardware_of
from longvita.planning.parameters import ELEMENT_BYTES, StateBytes, state_bytes

HEAD, FEATURES, COMMUNICATION = "head", "vision features", "communication"
KV_PAGE = 2048
"""Rows of a page of the KV cache (longvita.attention.kv_cache)."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on a rank of one pipeline stage, the one that holds most of it."""

    stage: int
    layers: int
    """Language layers."""
    parameter_count: int
    """Parameters of the rank (of its TP share), trained or frozen; padding left out."""
    parameters: int
    """Of weights, the padding of Megatron's buffers included."""
    gradients: int
    """Of main gradients, fp32."""
    optimizer: int
    """Of Adam's moments, and with bf16 of main weights, both fp32."""
    activations: int
    """Of all that a step makes at its highest moment, the parts below included."""
    vision_features: int
    """Of that: features of tiles and what the projector keeps."""
    loss_head: int
    """Of that: selected rows, their gradients, the output weight's gradient, logits of a chunk."""
    communication: int
    """Of that: buffers in which collectives gather."""
    by_kind: dict[str, int]
    """All parts of `activations`."""
    contents: str
    """What the micro batch held that took most: video or text."""
    kv_cache: int = 0
    """Of keys and values in generation."""
    offloaded: int = 0
    """In the host's memory: layer inputs that wait there, as its allocator rounds them."""
    reserved: int = 0
    """What the device's software takes, and what is lost between blocks (assumption)."""
    moments: tuple[Moment, ...] = field(default=(), repr=False, compare=False)
    """The history of one micro batch's bytes."""
    waiting: float = 0
    """Micro batches that wait for their backward pass beside the present one."""
    traffic: int = 0
    """Bytes of the tensors that one micro batch makes."""

    @property
    def total(self) -> int:
        """All of it."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.kv_cache + self.reserved


def plan_memory(
    config: Config,
    world_size: int,
    hardware: Hardware | None = None,
    contents: Sequence[Contents] | None = None,
) -> list[StageMemory]:
    """Memory of each pipeline stage of a training run over `world_size` processes.

    hardware: the device; by default one that runs the config's platform (longvita.planning.hardware).
    contents: what micro batches may hold, of which the worst counts; all frames or all text when absent.
    Raises ConfigError when the processes do not make up whole replicas or the batch does not split over them.
    """
    return list(stage_memories(config, world_size, hardware or hardware_of(config.platform), contents))


def stage_memories(
    config: Config,
    world_size: int,
    hardware: Hardware,
    contents: Sequence[Contents] | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[StageMemory]:
    """What plan_memory lists, one stage after the other; order: which stages, all from the first when absent."""
    replicas = check_world_size(config, world_size)
    training, layers = config.training, layers_per_stage(config)
    micro_batches = training.global_batch_size // (training.micro_batch_size * replicas)
    histories: dict[tuple, History] = {}
    for stage in range(len(layers)) if order is None else order:
        found = []
        for each in contents or worst_contents(config):
            # The stages between the ends are alike but for the micro batches that wait.
            key = (stage == 0, stage == len(layers) - 1, layers[stage], each)
            if key not in histories:
                histories[key] = history(config, hardware.layer_memory, each, stage)
            found.append((histories[key].with_others(config, stage, micro_batches), each.name))
        worst, name = max(found, key=lambda item: item[0].peak)
        held = _stage(stage, layers[stage], state_bytes(config, world_size, stage), worst, name, hardware)
        if training.recompute.offload:
            held = dataclasses.replace(held, offloaded=_offloaded(config, hardware, layers[stage], worst.waiting))
        yield held


def _offloaded(config: Config, hardware: Hardware, layers: int, waiting: float) -> int:
    """Layer inputs of all micro batches that wait for their backward pass.

    torch hands out pinned memory in powers of two (ATen/core/CachingHostAllocator.h, 2.13), unless the allocator's
    setting pinned_max_round_threshold_mb says otherwise.
    """
    rows = rows_of_a_rank(config, worst_contents(config)[0]).residual
    inputs = -(-layers // config.training.recompute.num_layers)
    each = rows * config.model.language.hidden_size * ELEMENT_BYTES[config.training.precision]
    if hardware.host_memory is not None:
        each = 1 << (each - 1).bit_length()
    return int((waiting + 1) * inputs * each)


def _stage(
    stage: int, layers: int, state: StateBytes, worst: Activations, contents: str, hardware: Hardware
) -> StageMemory:
    return StageMemory(
        stage=stage,
        layers=layers,
        parameter_count=state.parameter_count,
        parameters=state.parameters,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=worst.peak,
        vision_features=worst.by_kind.get(FEATURES, 0),
        loss_head=worst.by_kind.get(HEAD, 0),
        communication=worst.by_kind.get(COMMUNICATION, 0),
        by_kind=worst.by_kind,
        contents=contents,
        reserved=hardware.reserved + int(hardware.fragmentation * worst.peak),
        moments=tuple(worst.moments),
        waiting=worst.waiting,
        traffic=worst.made,
    )


def plan_generation(config: Config, hardware: Hardware | None = None) -> list[StageMemory]:
    """Memory of each pipeline stage of a model that answers: weights, the KV cache of `inference.max_seq_len` tokens,
    and a prefill chunk on its way, of frames alone or of text.
    """
    hardware = hardware or hardware_of(config.platform)
    inference = config.inference
    answering = config.model_copy(
        update={
            "data": config.data.model_copy(update={"sequence_length": inference.prefill_chunk_size}),
            "training": config.training.model_copy(
                update={"trainable": ["language"], "micro_batch_size": 1, "mlp_chunk_size": None}
            ),
        }
    )
    alone = config.model_copy(update={"layout": config.layout.model_copy(update={"virtual_pipeline": 1})})
    rows = -(-inference.max_seq_len // (config.layout.context_parallel * KV_PAGE)) * KV_PAGE
    element = ELEMENT_BYTES[config.training.precision]
    stages = []
    for stage, layers in enumerate(layers_per_stage(config)):
        state = state_bytes(answering, config.layout.tensor_parallel * config.layout.pipeline_parallel
                            * config.layout.context_parallel, stage)  # fmt: skip
        passes = [
            (
                history(answering, hardware.layer_memory, each, stage, forward_only=True).with_others(alone, 0, 1),
                each.name,
            )
            for each in worst_contents(answering)
        ]
        worst, name = max(passes, key=lambda item: item[0].peak)
        held = _stage(stage, layers, state, worst, name, hardware)
        each = 2 * layers * local_query_groups(config) * config.model.language.head_dim * element
        weights = state.parameter_count * element
        stages.append(dataclasses.replace(held, parameters=weights, gradients=0, optimizer=0, kv_cache=rows * each))
    return stages


def fits(stages: Sequence[StageMemory], hardware: Hardware) -> bool:
    """Whether every stage fits the device, and what it puts away the device's share of the host."""
    return all(stage.total <= hardware.memory and stage.offloaded <= hardware.host_share() for stage in stages)
