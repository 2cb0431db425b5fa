"""The parameters of a rank, by name and shape, and the bytes of weights, gradients and optimizer state.

Parameters are listed in the order in which the modules register them. Megatron fills its buffers in reverse order; each
parameter starts at a multiple of 64 elements and each bucket ends at a common multiple of 128 and the number of shards
(megatron/core/distributed/param_and_grad_buffer.py, 0.16.1). Transformer Engine and MindSpeed fuse norms into linear
layers and so register them in another order; only the padding differs, by a few hundred bytes a layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from longvita.config.schema import Config, LanguageConfig, ModelConfig, VisionConfig
from longvita.config.sizes import layers_per_stage

ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
"""Bytes of a weight and of an activation by training.precision."""
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
"""Multiples of elements at which a parameter starts and a bucket ends."""
MAIN_BYTES = 4
"""Bytes of a main gradient, a main weight and each moment of Adam: fp32 at either precision."""


@dataclass(frozen=True)
class Parameter:
    """One parameter on a rank."""

    name: str
    """Name within a model chunk, whose layers are numbered from 0."""
    shape: tuple[int, ...]
    """Shape of the rank's TP shard."""
    shared_embedding: bool = False
    """Whether the first and the last pipeline stage hold a copy each; its bucket holds no other parameter."""

    @property
    def part(self) -> str:
        """The part of the model that it belongs to, by the names of `training.trainable`."""
        if self.name.startswith("vision_model."):
            return "vision"
        return "projector" if self.name.startswith("vision_projection.") else "language"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def stage_parameters(config: Config, stage: int) -> list[tuple[Parameter, ...]]:
    """List the parameters of each model chunk of pipeline stage `stage`, identical on all of its ranks."""
    chunks = config.layout.virtual_pipeline
    layers = layers_per_stage(config)[stage] // chunks
    last_stage = config.layout.pipeline_parallel - 1
    return [
        tuple(_chunk(config, layers, stage == 0 and chunk == 0, stage == last_stage and chunk == chunks - 1))
        for chunk in range(chunks)
    ]


def _chunk(config: Config, layers: int, first: bool, last: bool) -> Iterator[Parameter]:
    language, tp = config.model.language, config.layout.tensor_parallel
    if first:
        yield from _vision(config.model.vision)
        yield from _projector(config.model)
    shared = language.tie_word_embeddings and not (first and last)
    vocabulary = (language.vocab_size // tp, language.hidden_size)
    if first:
        yield Parameter("language_model.embedding.word_embeddings.weight", vocabulary, shared)
    for layer in range(layers):
        yield from _language_layer(f"language_model.decoder.layers.{layer}", language, tp)
    if last:
        yield Parameter("language_model.decoder.final_layernorm.weight", (language.hidden_size,))
        if not (language.tie_word_embeddings and first):
            yield Parameter("language_model.output_layer.weight", vocabulary, shared)


def _vision(vision: VisionConfig) -> Iterator[Parameter]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    yield Parameter("vision_model.class_embedding", (1, 1, hidden))
    yield Parameter("vision_model.position_embedding", (1, vision.sequence_length, hidden))
    yield Parameter("vision_model.patch_embedding.weight", (hidden, 3, vision.patch_size, vision.patch_size))
    yield Parameter("vision_model.patch_embedding.bias", (hidden,))
    for layer in range(vision.num_layers):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "input_layernorm.bias": (hidden,),
            "self_attention.linear_proj.weight": (hidden, hidden),
            "self_attention.linear_proj.bias": (hidden,),
            "self_attention.linear_qkv.weight": (3 * hidden, hidden),
            "self_attention.linear_qkv.bias": (3 * hidden,),
            "self_attn_bda.scale": (hidden,),
            "pre_mlp_layernorm.weight": (hidden,),
            "pre_mlp_layernorm.bias": (hidden,),
            "mlp.linear_fc1.weight": (ffn, hidden),
            "mlp.linear_fc1.bias": (ffn,),
            "mlp.linear_fc2.weight": (hidden, ffn),
            "mlp.linear_fc2.bias": (hidden,),
            "mlp_bda.scale": (hidden,),
        }
        for name, shape in shapes.items():
            yield Parameter(f"vision_model.decoder.layers.{layer}.{name}", shape)


def _projector(model: ModelConfig) -> Iterator[Parameter]:
    projector, width = model.projector, model.vision.hidden_size * model.projector.downsample**2
    yield Parameter("vision_projection.layernorm.weight", (width,))
    yield Parameter("vision_projection.layernorm.bias", (width,))
    yield Parameter("vision_projection.linear_fc1.weight", (projector.hidden_size, width))
    yield Parameter("vision_projection.linear_fc2.weight", (model.language.hidden_size, projector.hidden_size))


def _language_layer(prefix: str, language: LanguageConfig, tp: int) -> Iterator[Parameter]:
    hidden, ffn, query = language.hidden_size, language.ffn_hidden_size // tp, language.query_width // tp
    query_key_value = query + 2 * language.num_query_groups * language.head_dim // tp
    yield Parameter(f"{prefix}.input_layernorm.weight", (hidden,))
    yield Parameter(f"{prefix}.self_attention.linear_proj.weight", (hidden, query))
    yield Parameter(f"{prefix}.self_attention.linear_qkv.weight", (query_key_value, hidden))
    yield Parameter(f"{prefix}.self_attention.linear_qkv.bias", (query_key_value,))
    yield Parameter(f"{prefix}.pre_mlp_layernorm.weight", (hidden,))
    yield Parameter(f"{prefix}.mlp.linear_fc1.weight", (2 * ffn, hidden))
    yield Parameter(f"{prefix}.mlp.linear_fc2.weight", (hidden, ffn))


@dataclass(frozen=True)
class Buffer:
    """Megatron's buffer of the trained parameters of a model chunk."""

    buckets: tuple[tuple[int, int], ...]
    """First element and end of each bucket."""
    places: tuple[tuple[int, int, int], ...]
    """Bucket, first element and end of each parameter."""

    @property
    def elements(self) -> int:
        """Number of elements, padding included."""
        return self.buckets[-1][1] if self.buckets else 0


@functools.lru_cache(maxsize=256)
def plan_buffer(parameters: tuple[Parameter, ...], shards: int, bucket_size: int | None) -> Buffer:
    """Place trained `parameters` in a buffer whose optimizer state is sharded over `shards` ranks (DP x CP).

    bucket_size: elements at which a bucket is closed; None for a single bucket.
    """
    unit = math.lcm(shards, BUCKET_ALIGNMENT)
    buckets: list[tuple[int, int]] = []
    places: list[tuple[int, int, int]] = []
    bucket_start = end = 0

    def close() -> int:
        nonlocal bucket_start
        bucket_end = _padded(end, unit)
        buckets.append((bucket_start, bucket_end))
        bucket_start = bucket_end
        return bucket_end

    waiting = False
    for parameter in reversed(parameters):
        start = _padded(end, PARAMETER_ALIGNMENT)
        if parameter.shared_embedding and waiting:
            # The bucket that is closed ends at the aligned start of the next parameter.
            end = start
            start = close()
        end = start + parameter.elements
        places.append((len(buckets), start, end))
        waiting = True
        full = bucket_size is not None and end - bucket_start >= bucket_size
        if full or parameter.shared_embedding:
            end = close()
            waiting = False
    if waiting:
        close()
    return Buffer(tuple(buckets), tuple(places))


@functools.lru_cache(maxsize=256)
def shard_elements(buffer: Buffer, shards: int) -> tuple[int, ...]:
    """Count the elements of parameters, without padding, that each rank of the `shards` updates."""
    held = [0] * shards
    for bucket, start, end in buffer.places:
        first, last = buffer.buckets[bucket]
        width = (last - first) // shards
        for rank in range((start - first) // width, -(-(end - first) // width)):
            low, high = first + rank * width, first + (rank + 1) * width
            held[rank] += max(0, min(end, high) - max(start, low))
    return tuple(held)


def _padded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass(frozen=True)
class StateBytes:
    """Weights, gradients and optimizer state of a rank."""

    parameter_count: int
    """Parameters of the rank, trained or frozen."""
    parameters: int
    """Bytes of the weights: buffers with their padding, and frozen weights."""
    gradients: int
    """Bytes of the main gradients, padding included."""
    optimizer: int
    """Bytes of Adam's moments and, with bf16, the main weights."""


def state_bytes(config: Config, world_size: int, stage: int, dp_cp_rank: int | None = None) -> StateBytes:
    """Count the state of a rank of pipeline stage `stage` among `world_size` processes.

    dp_cp_rank: the rank's place among those that the optimizer state is sharded over (DP x CP); when absent, that
    of the largest shard.
    """
    layout, training = config.layout, config.training
    data_parallel = world_size // (layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel)
    shards = data_parallel * layout.context_parallel
    count = frozen = elements = 0
    held = [0] * shards
    for number, parameters in enumerate(stage_parameters(config, stage)):
        count += sum(parameter.elements for parameter in parameters)
        own = tuple(parameter for parameter in parameters if parameter.part in training.trainable)
        frozen += sum(parameter.elements for parameter in parameters if parameter.part not in training.trainable)
        # A vision tower that is recomputed reduces without overlap (longvita.training.state), and so in one bucket.
        vision_recomputed = training.recompute.vision and "vision" in training.trainable
        bucketed = training.overlap_grad_reduce and not vision_recomputed and stage == 0 and number == 0
        # Megatron's default, megatron/core/distributed/distributed_data_parallel.py. Where checkpoints store buckets,
        # longvita.training.state has another one above 40 replicas, which changes padding alone.
        buffer = plan_buffer(own, shards, max(40_000_000, 1_000_000 * data_parallel) if bucketed else None)
        elements += buffer.elements
        held = [a + b for a, b in zip(held, shard_elements(buffer, shards), strict=True)]
    weight = ELEMENT_BYTES[training.precision]
    mine = max(held) if dp_cp_rank is None else held[dp_cp_rank]
    copies = 2 if training.precision == "fp32" else 3
    return StateBytes(
        parameter_count=count,
        parameters=weight * (elements + frozen),
        gradients=MAIN_BYTES * elements,
        optimizer=MAIN_BYTES * copies * mine,
    )
