"""Seconds of a step, from operations, bandwidths and the pipeline's bubble.

The time of a micro batch on a stage is the sum of arithmetic, memory traffic, and communication that is not hidden
behind them. The rates are assumptions (longvita.planning.hardware); the purpose of the figures is to order layouts.
Waiting for data and for other jobs is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longvita.config.flops import Workload, language_parts, training_flops, vision_parts
from longvita.config.schema import Config
from longvita.config.sizes import local_query_groups, replica_size, ulysses_size
from longvita.planning.batch_contents import BatchContents
from longvita.planning.hardware import Hardware
from longvita.planning.memory import StageMemory
from longvita.planning.parameters import ELEMENT_BYTES

COLLECTIVES_OVERLAP = 0.8
"""Fraction of the gradients' reduction that overlap_grad_reduce hides behind the backward pass (assumption)."""
ADAM_TRAFFIC = 7
"""Reads and writes of fp32 values that a step makes for each weight: gradient, main weight, two moments."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    seconds: float
    compute: float
    """Arithmetic and memory traffic of the slowest stage's micro batches."""
    tensor_parallel: float
    context_parallel: float
    """Communication of the ring and of Ulysses that is not hidden behind attention."""
    pipeline_bubble: float
    data_parallel: float
    """Reduction of gradients that is not hidden, and all-gather of weights."""
    offload: float
    """Copies to the host's memory and back that are not hidden."""
    optimizer: float
    tokens_per_second: float
    """Rate of the run, all replicas together."""
    mfu: float
    """The model's operations over those of all devices at their peak in the same time."""

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part, by its name in texts."""
        return {
            "arithmetic and memory": self.compute,
            "TP": self.tensor_parallel,
            "CP": self.context_parallel,
            "pipeline bubble": self.pipeline_bubble,
            "DP": self.data_parallel,
            "offload": self.offload,
            "optimizer": self.optimizer,
        }


@dataclass
class _MicroBatchTime:
    """Seconds of one micro batch on one stage."""

    compute: float
    tensor: float
    context: float
    offload: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context + self.offload


def step_time(
    config: Config, world_size: int, hardware: Hardware, stages: Sequence[StageMemory], contents: BatchContents
) -> StepTime:
    """Plan the seconds of a step whose micro batches all have `contents`; `stages`: their plan_memory."""
    layout, training = config.layout, config.training
    replicas = world_size // replica_size(config)
    micro_batches = training.global_batch_size // (training.micro_batch_size * replicas)
    parts = [_micro_batch(config, hardware, stage, contents) for stage in stages]
    slowest = max(parts, key=lambda each: each.total)
    # The other stages compute one micro batch before the slowest stage is busy, or after it.
    bubble = (sum(each.total for each in parts) - slowest.total) / layout.virtual_pipeline
    if layout.pipeline_parallel > 1:
        hidden = _hidden_bytes(config, contents, local=True)
        rate = _rate(hardware, layout.tensor_parallel * layout.context_parallel * replicas * 2)
        bubble += 2 * hidden / rate * layout.virtual_pipeline * micro_batches
    pairs = zip(stages, parts, strict=True)
    data = max(_data_parallel(config, hardware, stage, replicas, part) for stage, part in pairs)
    shards = replicas * layout.context_parallel
    optimizer = max(ADAM_TRAFFIC * stage.gradients / shards / hardware.bandwidth for stage in stages)
    seconds = micro_batches * slowest.total + bubble + data + optimizer
    tokens = contents.tokens * micro_batches * replicas
    useful = training_flops(config.model, _workload(contents), training.trainable) * micro_batches * replicas
    return StepTime(
        seconds=seconds,
        compute=micro_batches * slowest.compute,
        tensor_parallel=micro_batches * slowest.tensor,
        context_parallel=micro_batches * slowest.context,
        pipeline_bubble=bubble,
        data_parallel=data,
        offload=micro_batches * slowest.offload,
        optimizer=optimizer,
        tokens_per_second=tokens / seconds,
        mfu=useful / (seconds * world_size * hardware.flops),
    )


def _workload(contents: BatchContents) -> Workload:
    length = contents.tokens // contents.documents
    pairs = contents.documents * (length * (length + 1) // 2)
    return Workload(contents.documents * length, pairs, contents.loss_tokens, contents.tiles)


def _micro_batch(config: Config, hardware: Hardware, stage: StageMemory, contents: BatchContents) -> _MicroBatchTime:
    """Forward and backward pass of one micro batch."""
    layout, training, recompute = config.layout, config.training, config.training.recompute
    ranks = layout.tensor_parallel * layout.context_parallel
    language = language_parts(config.model, _workload(contents))
    fraction = stage.layers / config.model.language.num_layers
    trained = "language" in training.trainable
    recomputed = _recomputed(config, stage.layers)
    linear = language["language_linear"] * fraction * (2 + trained + recomputed)
    if training.mlp_chunk_size is not None:
        sizes = config.model.language
        mlp_fraction = 3 * sizes.hidden_size * sizes.ffn_hidden_size / sizes.layer_weights
        linear += language["language_linear"] * fraction * mlp_fraction
    attends = language["language_attention"] * fraction
    attention = attends * (3 + (1 if recompute.granularity == "selective" else recomputed))
    head = language["head"] * (2 + trained) if stage.stage == layout.pipeline_parallel - 1 else 0
    vision = _vision_flops(config, contents) if stage.stage == 0 else 0
    matmul = hardware.flops * hardware.matmul_efficiency
    attending = attention / ranks / (hardware.flops * hardware.attention_efficiency)
    products = matmul if training.fp8 is None else hardware.fp8_flops * hardware.matmul_efficiency
    arithmetic = linear / ranks / products + (head + vision) / ranks / matmul + attending
    # Every tensor is written and read again. Only matrix products overlap that with arithmetic, but they reuse what
    # they read.
    traffic = 2 * stage.traffic / hardware.bandwidth
    compute = arithmetic + traffic
    ring = _ring(config, hardware, contents, stage.layers)
    moved = 2 * stage.layers * _hidden_bytes(config, contents, local=True) / hardware.host_link
    return _MicroBatchTime(
        compute=compute,
        tensor=_tensor_parallel(config, hardware, contents, stage.layers, recomputed),
        context=max(0.0, ring - attending),
        offload=max(0.0, moved - compute) if recompute.offload else 0.0,
    )


def _recomputed(config: Config, layers: int) -> float:
    """Fraction of a stage's layers whose forward pass runs twice."""
    recompute = config.training.recompute
    if recompute.granularity != "full":
        return 0.0
    if recompute.method == "uniform":
        return 1.0
    return min(recompute.num_layers * config.layout.virtual_pipeline / layers, 1)


def _vision_flops(config: Config, contents: BatchContents) -> float:
    parts = vision_parts(config.model, _workload(contents))
    trainable = config.training.trainable
    projector = sum(size for name, size in parts.items() if name.startswith("projector"))
    encoder = sum(parts.values()) - projector
    factor = 3 + config.training.recompute.vision if "vision" in trainable else 1
    return encoder * factor + projector * (3 if "projector" in trainable else 1)


def _hidden_bytes(config: Config, contents: BatchContents, local: bool) -> float:
    """Bytes of a hidden state on a CP rank; `local`: on one of its TP ranks, if sequence parallelism splits it."""
    layout = config.layout
    size = contents.tokens / layout.context_parallel * config.model.language.hidden_size
    size *= ELEMENT_BYTES[config.training.precision]
    return size / layout.tensor_parallel if local and layout.sequence_parallel else size


def _rate(hardware: Hardware, span: int) -> float:
    """Bytes/s of collectives over ranks that are among `span` neighbours."""
    link = hardware.link if span <= hardware.devices_per_node else hardware.network
    return link * hardware.link_efficiency


def _tensor_parallel(
    config: Config, hardware: Hardware, contents: BatchContents, layers: int, recomputed: float
) -> float:
    """Two all-reduces a layer and pass; under sequence parallelism each is a reduce-scatter and an all-gather, with one
    more all-gather of each input for the weights' gradients (arXiv 2205.05198).
    """
    tp = config.layout.tensor_parallel
    if tp == 1:
        return 0.0
    once = (tp - 1) / tp * _hidden_bytes(config, contents, local=False) / _rate(hardware, tp)
    passes = 4 * (2 + recomputed)
    if config.layout.sequence_parallel and "language" in config.training.trainable:
        passes += 2
    return layers * once * passes


def _ring(config: Config, hardware: Hardware, contents: BatchContents, layers: int) -> float:
    """Messages of the ring, keys and values and in the backward pass their gradients; all-to-all of Ulysses."""
    layout, language = config.layout, config.model.language
    if layout.context_parallel == 1:
        return 0.0
    ulysses = ulysses_size(config) if hardware.layer_memory.ulysses else 1
    element = ELEMENT_BYTES[config.training.precision]
    rate = _rate(hardware, layout.tensor_parallel * layout.context_parallel)
    rows = contents.tokens / layout.context_parallel
    pairs = rows * 2 * local_query_groups(config) * language.head_dim * element
    own = pairs * (layout.context_parallel // ulysses - 1)
    queries = 2 * rows * language.query_width / layout.tensor_parallel * element
    exchanged = (queries + pairs) * (ulysses - 1) / ulysses
    recomputed = _recomputed(config, layers)
    return layers * (own * (3 + recomputed) + exchanged * (2 + recomputed)) / rate


def _data_parallel(
    config: Config, hardware: Hardware, stage: StageMemory, replicas: int, part: _MicroBatchTime
) -> float:
    """Reduce-scatter of fp32 gradients and all-gather of weights over DP x CP."""
    layout = config.layout
    ranks = replicas * layout.context_parallel
    if ranks == 1:
        return 0.0
    rate = _rate(hardware, layout.tensor_parallel * ranks)
    reduction = (ranks - 1) / ranks * stage.gradients / rate
    gathering = (ranks - 1) / ranks * stage.gradients / 4 * ELEMENT_BYTES[config.training.precision] / rate
    if config.training.overlap_grad_reduce:
        reduction -= min(COLLECTIVES_OVERLAP * reduction, part.total * 2 / 3)
    return reduction + gathering
