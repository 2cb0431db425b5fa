"""Bytes that one micro batch takes on a rank of a pipeline stage, moment by moment."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage
from longvita.planning.activation_timeline import ActivationTimeline, Moment, Storage, Tensor
from longvita.planning.batch_contents import Contents
from longvita.planning.decoder_activations import Decoder, Rows
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.planning.vision_activations import place_features, tiles_of_a_rank
from longvita.platforms.layer_memory import LayerMemory

FP8_WEIGHTS = "FP8 weights"
TILE_BYTES = 3 * 4
"""Of a tile's pixel as the loader hands it out: three colours in fp32."""


@dataclass(frozen=True)
class Activations:
    """What the forward and backward passes of a step take beside weights, gradients and optimizer state."""

    peak: int
    """Bytes at the highest moment, micro batches of the pipeline that wait for their backward pass included."""
    by_kind: dict[str, int]
    """What the peak consists of: attention, mlp, vision, vision features, embedding, head, communication, pipeline,
    FP8 weights."""
    moments: list[Moment]
    """The history of one micro batch upon those that wait."""
    waiting: float
    """Micro batches that wait for their backward pass beside the present one."""
    made: int
    """Bytes of all tensors that one micro batch makes, scratch included."""


def rows_of_a_rank(config: Config, contents: Contents) -> Rows:
    """Rows of a micro batch on one rank, padding for equal shares included."""
    layout = config.layout
    sharers = layout.tensor_parallel if layout.sequence_parallel else 1
    unit = layout.context_parallel * sharers
    own = -(-contents.tokens // unit) * sharers
    return Rows(own, own // sharers)


@dataclass(frozen=True)
class History:
    """One micro batch on one stage, alone."""

    timeline: ActivationTimeline
    kept: list[Counter[str]]
    """For each model chunk, bytes by kind between its forward and its backward pass, without buffers that all micro
    batches share."""

    def with_others(self, config: Config, stage: int, micro_batches: int) -> Activations:
        """Activations when others of `micro_batches` micro batches wait for their backward pass."""
        sizes = [sum(kept.values()) for kept in self.kept]
        others = waiting(config, stage, micro_batches, sizes)
        by_kind = Counter(self.timeline.at_peak)
        for kept, count in zip(self.kept, others, strict=True):
            for kind, size in kept.items():
                by_kind[kind] += size * count
        base = sum(size * count for size, count in zip(sizes, others, strict=True))
        moments = [Moment(moment.label, moment.size + base) for moment in self.timeline.moments]
        number = sum(others) / max(len(others), 1)
        return Activations(self.timeline.peak + base, dict(+by_kind), moments, number, self.timeline.made)


def history(
    config: Config, layer_memory: LayerMemory, contents: Contents, stage: int, forward_only: bool = False
) -> History:
    """A micro batch of these contents on a rank of pipeline stage `stage`.

    forward_only: a pass that keeps nothing, as in generation, with logits of one position.
    """
    timeline = ActivationTimeline()
    run = _MicroBatch(timeline, config, layer_memory, contents, stage)
    if forward_only:
        run.forward_only()
        return History(timeline, [Counter()])
    run.forward()
    run.chunk_ends()
    run.backward()
    for before, after in reversed(list(itertools.pairwise(run.ends))):
        after.subtract(before)
    return History(timeline, run.ends)


def activations(
    config: Config, layer_memory: LayerMemory, contents: Contents, stage: int, micro_batches: int
) -> Activations:
    """Activations of a rank of pipeline stage `stage`, `micro_batches` a step, all with the same contents."""
    return history(config, layer_memory, contents, stage).with_others(config, stage, micro_batches)


def waiting(config: Config, stage: int, micro_batches: int, sizes: Sequence[int]) -> list[int]:
    """For each model chunk, how many passes of it are kept beside that of the present micro batch, when they take most.

    sizes: bytes that a pass of each chunk keeps. In 1F1B, and in its interleaved form, where a pass is one of a chunk
    and groups of PP micro batches go through one chunk after the other (arXiv 2104.04473,
    megatron/core/pipeline_parallel/schedules.py). A chunk of which none is kept then counts -1: a micro batch as it is
    planned alone has all of them.
    """
    stages, chunks = config.layout.pipeline_parallel, config.layout.virtual_pipeline
    if chunks == 1:
        return [min(stages - stage, micro_batches) - 1]
    total = micro_batches * chunks
    ahead = min((stages - stage - 1) * 2 + (chunks - 1) * stages, total)
    alive = [0] * chunks
    for number in range(ahead):
        alive[number // stages % chunks] += 1
    most, found = -1, alive
    # The pattern comes again after all chunks have had their groups; without passes left there are backward ones alone.
    for number in range(min(total - ahead, 2 * stages * chunks) or 1):
        if ahead + number < total:
            alive[(ahead + number) // stages % chunks] += 1
        size = sum(count * each for count, each in zip(alive, sizes, strict=True))
        if size > most:
            most, found = size, list(alive)
        alive[chunks - 1 - number // stages % chunks] -= 1
    return [count - 1 for count in found]


class _MicroBatch:
    """Forward and backward pass of one micro batch through a stage."""

    def __init__(
        self, timeline: ActivationTimeline, config: Config, layer_memory: LayerMemory, contents: Contents, stage: int
    ):
        self.timeline, self.config, self.layer_memory, self.contents = timeline, config, layer_memory, contents
        self.stage, self.rows = stage, rows_of_a_rank(config, contents)
        self.first, self.last = stage == 0, stage == config.layout.pipeline_parallel - 1
        self.decoder = Decoder(timeline, config, layer_memory, self.rows)
        self.element = ELEMENT_BYTES[config.training.precision]
        self.output: Tensor | None = None
        self.received: Tensor | None = None
        self.ends: list[Counter[str]] = []
        """Bytes by kind that live after the forward pass of each chunk."""

    def forward(self) -> None:
        timeline = self.timeline
        timeline.hold(Storage(self.decoder.fp8_weights(layers_per_stage(self.config)[self.stage]), FP8_WEIGHTS))
        if self.layer_memory.batch_on_device and self.first:
            tiles = tiles_of_a_rank(self.config, self.contents)
            timeline.hold(Storage(tiles * TILE_BYTES * self.config.model.vision.image_size**2, "vision"))
        hidden = self._input()
        hidden = self._layers(hidden)
        self.output = self._loss(hidden) if self.last else hidden
        if not self.last and self.layer_memory.frees_stage_outputs:
            timeline.drop(hidden)  # it has been sent

    def chunk_ends(self) -> None:
        """Notes what lives now, at the end of a chunk's forward pass."""
        live = Counter(self.timeline.live)
        live["communication"] -= self.timeline.gathered
        del live[FP8_WEIGHTS]
        self.ends.append(live)

    def forward_only(self) -> None:
        with self.timeline.without_gradients():
            self._layers(self._input())

    def backward(self) -> None:
        timeline, output = self.timeline, self.output
        if output is None:
            raise RuntimeError("the backward pass comes after the forward pass")
        timeline.kind = "pipeline"
        timeline.backward(output)
        if self.received is not None:
            timeline.take_gradient(self.received)
            timeline.drop(self.received)

    def _input(self) -> Tensor:
        timeline = self.timeline
        if not self.first:
            with timeline.part("pipeline"):
                self.received = timeline.tensor(self.decoder.hidden)
                timeline.hold(self.received.storage)  # the schedule keeps it for its gradient
                return self.received
        timeline.label = "embedding"
        language = self.config.model.language
        trained = "language" in self.config.training.trainable
        with timeline.part("embedding"):
            weight = language.vocab_size // self.config.layout.tensor_parallel * language.hidden_size * self.element
            scattered = self.decoder.full_hidden if self.config.layout.sequence_parallel else 0
            ids = timeline.tensor(0, differentiable=False)
            embeddings = timeline.operator(
                [ids],
                self.decoder.hidden,
                scratch=scattered * (3 if self.layer_memory.copying_collectives else 1),
                backward_scratch=scattered * (2 if self.layer_memory.copying_collectives else 1),
                weight_gradient=weight if trained else 0,
                trained=trained,
            )
        return place_features(timeline, self.config, self.layer_memory, self.contents, embeddings)

    def _layers(self, hidden: Tensor) -> Tensor:
        timeline, config = self.timeline, self.config
        recompute, count = config.training.recompute, layers_per_stage(config)[self.stage]
        with timeline.part("attention"):
            # Rotary angles, fp32.
            timeline.tensor(4 * self.rows.attention * config.model.language.head_dim, differentiable=False)
        full = recompute.granularity == "full"
        each = recompute.num_layers if full and recompute.method == "uniform" else 1
        # Each model chunk has its own.
        chunk = count // config.layout.virtual_pipeline
        recomputed = (chunk if recompute.method == "uniform" else recompute.num_layers) if full else 0
        layer = 0
        while layer < count:
            if layer and layer % chunk == 0:
                self.chunk_ends()
            timeline.label = f"layer {layer + 1}"
            if layer % chunk < recomputed:
                group = min(each, chunk - layer % chunk)
                with timeline.part("layer inputs"):
                    hidden = timeline.checkpoint(self._some_layers(group), hidden, away=recompute.offload)
                layer += group
            else:
                hidden = self.decoder.layer(hidden)
                layer += 1
        return hidden

    def _some_layers(self, count: int) -> Callable[[Tensor], Tensor]:
        def run(hidden: Tensor) -> Tensor:
            for _ in range(count):
                hidden = self.decoder.layer(hidden)
            return hidden

        return run

    def _loss(self, hidden: Tensor) -> Tensor:
        """Final norm, selected rows, cross-entropy in chunks whose gradients are computed at once."""
        timeline, config = self.timeline, self.config
        language, layout = config.model.language, config.layout
        trained = "language" in config.training.trainable
        timeline.label = "loss"
        with timeline.part("head"):
            normed = self.decoder.norm(hidden)
            timeline.drop(hidden)
            rows = min(-(-self.contents.loss_tokens // layout.context_parallel), self.rows.attention)
            if rows > 0 and layout.context_parallel > 1:
                rows = min(self.contents.loss_tokens, self.rows.attention)
            selected = rows * language.hidden_size * self.element
            gathers = layout.sequence_parallel and layout.tensor_parallel > 1
            picked = timeline.operator([normed], selected, scratch=2 * selected if gathers else 0, last=())
            vocabulary = language.vocab_size // layout.tensor_parallel
            chunk = min(config.training.loss_chunk_size, rows)
            # The logits of a chunk live until those of the next one are there.
            logits = min(2 * chunk, rows) * vocabulary * (4 if self.element == 4 else 4 + 4 + self.element)
            weight = vocabulary * language.hidden_size
            product = self.element * weight if trained and self.element != 4 else 0
            # The gradients of rows and weight are there already when the backward pass begins.
            loss = timeline.loss(picked, 4 * weight if trained else 0, logits + product, product)
            timeline.drop(normed)
        return loss
