"""Seconds of a step, from operations, bandwidths and the pipeline's bubble.

A stage's micro batch takes the longer of its arithmetic and its traffic to the memory, and what of its communication
does not hide behind them. The rates are assumptions (longvita.planning.hardware); the order of layouts is what the
figures are for. Waiting for data and for other jobs is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longvita.config.flops import Workload, language_parts, training_flops, vision_parts
from longvita.config.schema import Config
from longvita.config.sizes import local_query_groups, replica_size, ulysses_size
from longvita.planning.batch_contents import Contents
from longvita.planning.hardware import Hardware
from longvita.planning.memory import StageMemory
from longvita.planning.parameters import ELEMENT_BYTES

COLLECTIVES_OVERLAP = 0.8
"""Share of the gradients' reduction that hides behind the backward pass, where it may (assumption)."""
ADAM_TRAFFIC = 7
"""Times that a step reads or writes an fp32 value of each weight: gradient, main weight, two moments."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    seconds: float
    compute: float
    """Arithmetic and memory traffic of the slowest stage's micro batches."""
    tensor_parallel: float
    context_parallel: float
    """What of the ring or of Ulysses does not hide behind attention."""
    pipeline_bubble: float
    data_parallel: float
    """What of the reduction of gradients does not hide, and the gathering of weights."""
    offload: float
    """What of the way to the host's memory and back does not hide."""
    optimizer: float
    tokens_per_second: float
    """Of the whole run."""
    mfu: float
    """Operations that the model needs over what all devices could do at their peak."""


@dataclass
class _Parts:
    """Seconds of one micro batch on one stage."""

    compute: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    offload: float = 0.0

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context + self.offload


def step_time(
    config: Config, world_size: int, hardware: Hardware, stages: Sequence[StageMemory], contents: Contents
) -> StepTime:
    """Seconds of a step whose micro batches all hold `contents`; `stages` is their plan_memory."""
    layout, training = config.layout, config.training
    replicas = world_size // replica_size(config)
    micro_batches = training.global_batch_size // (training.micro_batch_size * replicas)
    parts = [_micro_batch(config, hardware, stage, contents) for stage in stages]
    slowest = max(parts, key=lambda each: each.total)
    # The first micro batch goes through the other stages before the slowest one is busy, or after it.
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


def _workload(contents: Contents) -> Workload:
    work = Workload(loss_tokens=contents.loss_tokens, tiles=contents.tiles)
    work.add_documents([contents.tokens // contents.documents] * contents.documents)
    return work


def _micro_batch(config: Config, hardware: Hardware, stage: StageMemory, contents: Contents) -> _Parts:
    """Forward and backward pass of one micro batch."""
    layout, training, recompute = config.layout, config.training, config.training.recompute
    sharers = layout.tensor_parallel * layout.context_parallel
    language = language_parts(config.model, _workload(contents))
    share = stage.layers / config.model.language.num_layers
    trained = "language" in training.trainable
    again = _recomputed(config, stage.layers)
    chunked = training.mlp_chunk_size is not None
    linear = language["language_linear"] * share * (2 + trained + again)
    if chunked:
        linear += language["language_linear"] * share * _mlp_share(config)
    attends = language["language_attention"] * share
    attention = attends * (3 + (1 if recompute.granularity == "selective" else again))
    head = language["head"] * (2 + trained) if stage.stage == layout.pipeline_parallel - 1 else 0
    vision = _vision_flops(config, contents) if stage.stage == 0 else 0
    matmul = hardware.flops * hardware.matmul_efficiency
    attending = attention / sharers / (hardware.flops * hardware.attention_efficiency)
    products = matmul if training.fp8 is None else hardware.fp8_flops * hardware.matmul_efficiency
    arithmetic = linear / sharers / products + (head + vision) / sharers / matmul + attending
    # What is written is read again; matrix products reuse what they read, so traffic runs beside arithmetic only there.
    traffic = 2 * stage.traffic / hardware.bandwidth
    compute = arithmetic + traffic
    ring = _ring(config, hardware, contents, stage.layers)
    offload = 0.0
    if recompute.offload:
        moved = 2 * stage.layers * _hidden_bytes(config, contents, local=True) / hardware.host_link
        offload = max(0.0, moved - compute)
    return _Parts(
        compute=compute,
        tensor=_tensor_parallel(config, hardware, contents, stage.layers, again),
        context=max(0.0, ring - attending),
        offload=offload,
    )


def _recomputed(config: Config, layers: int) -> float:
    """Share of a stage's layers whose forward pass runs twice."""
    recompute = config.training.recompute
    if recompute.granularity != "full":
        return 0.0
    return (
        1.0 if recompute.method == "uniform" else min(recompute.num_layers * config.layout.virtual_pipeline / layers, 1)
    )


def _mlp_share(config: Config) -> float:
    language = config.model.language
    return 3 * language.hidden_size * language.ffn_hidden_size / language.layer_weights


def _vision_flops(config: Config, contents: Contents) -> float:
    parts = vision_parts(config.model, _workload(contents))
    trainable = config.training.trainable
    projector = sum(size for name, size in parts.items() if name.startswith("projector"))
    tower = sum(parts.values()) - projector
    factor = 3 + config.training.recompute.vision if "vision" in trainable else 1
    return tower * factor + projector * (3 if "projector" in trainable else 1)


def _hidden_bytes(config: Config, contents: Contents, local: bool) -> float:
    """A hidden state of a micro batch on a CP rank, or on one TP rank of it under sequence parallelism."""
    layout = config.layout
    size = contents.tokens / layout.context_parallel * config.model.language.hidden_size
    size *= ELEMENT_BYTES[config.training.precision]
    return size / layout.tensor_parallel if local and layout.sequence_parallel else size


def _rate(hardware: Hardware, span: int) -> float:
    """Bytes/s of collectives over ranks that lie within `span` neighbours."""
    link = hardware.link if span <= hardware.devices_per_node else hardware.network
    return link * hardware.link_efficiency


def _tensor_parallel(config: Config, hardware: Hardware, contents: Contents, layers: int, again: float) -> float:
    """Two sums a layer and pass; under sequence parallelism each is a scatter and a gather, with one more gather of
    each input for the weights' gradients (arXiv 2205.05198).
    """
    tp = config.layout.tensor_parallel
    if tp == 1:
        return 0.0
    once = (tp - 1) / tp * _hidden_bytes(config, contents, local=False) / _rate(hardware, tp)
    passes = 4 * (2 + again)
    if config.layout.sequence_parallel and "language" in config.training.trainable:
        passes += 2
    return layers * once * passes


def _ring(config: Config, hardware: Hardware, contents: Contents, layers: int) -> float:
    """Keys and values around the ring, gradients too in the backward pass, and Ulysses' rows for heads."""
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
    traded = (queries + pairs) * (ulysses - 1) / ulysses
    again = _recomputed(config, layers)
    return layers * (own * (3 + again) + traded * (2 + again)) / rate


def _data_parallel(config: Config, hardware: Hardware, stage: StageMemory, replicas: int, part: _Parts) -> float:
    """Reduction of fp32 gradients and gathering of weights over DP x CP."""
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
