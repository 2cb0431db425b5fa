"""Bytes of activations of a training step on a rank of a pipeline stage, moment by moment."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage
from longvita.planning.activation_timeline import ActivationTimeline, Moment, PlannedStorage, PlannedTensor
from longvita.planning.batch_contents import BatchContents
from longvita.planning.decoder_activations import DecoderOperators, RankRows
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.planning.vision_activations import place_features, tiles_of_a_rank
from longvita.platforms.layer_memory import LayerMemory

FP8_WEIGHTS = "FP8 weights"
PIXEL_BYTES = 3 * 4
"""Bytes of a pixel of a tile in the loader's batch: three colours in fp32."""


@dataclass(frozen=True)
class Activations:
    """Memory of the forward and backward passes of a step, without weights, gradients and optimizer state."""

    peak: int
    """Bytes at the highest moment, including micro batches of the pipeline that wait for their backward pass."""
    by_kind: dict[str, int]
    """Parts of the peak: attention, mlp, vision, vision features, embedding, head, communication, pipeline,
    FP8 weights."""
    moments: list[Moment]
    """The timeline of one micro batch, on top of those that wait."""
    waiting: float
    """Micro batches that wait for their backward pass, without the current one."""
    allocated: int
    """Bytes of all tensors that one micro batch makes, scratch included."""


def rows_of_a_rank(config: Config, contents: BatchContents) -> RankRows:
    """Return the rows of a micro batch on one rank, including padding to equal numbers on all ranks."""
    layout = config.layout
    tp = layout.tensor_parallel if layout.sequence_parallel else 1
    own = -(-contents.tokens // (layout.context_parallel * tp)) * tp
    return RankRows(own, own // tp)


@dataclass(frozen=True)
class MicroBatchTimeline:
    """The activations of one micro batch on a rank of one stage."""

    timeline: ActivationTimeline
    kept: list[Counter[str]]
    """For each model chunk, bytes by kind between its forward and its backward pass, without buffers that are common to
    all micro batches."""

    def in_pipeline(self, config: Config, stage: int, micro_batches: int) -> Activations:
        """Add the other micro batches, of `micro_batches` a step, that wait for their backward pass at the peak."""
        sizes = [sum(kept.values()) for kept in self.kept]
        return self.with_waiting(waiting(config, stage, micro_batches, sizes))

    def with_waiting(self, others: Sequence[int]) -> Activations:
        """Add `others` passes of each model chunk that wait for their backward pass."""
        timeline, base, by_kind = self.timeline, 0, Counter(self.timeline.at_peak)
        for kept, count in zip(self.kept, others, strict=True):
            base += sum(kept.values()) * count
            for kind, size in kept.items():
                by_kind[kind] += size * count
        moments = [Moment(moment.label, moment.size + base) for moment in timeline.moments]
        number = sum(others) / max(len(others), 1)
        return Activations(timeline.peak + base, dict(+by_kind), moments, number, timeline.allocated)


def micro_batch_timeline(
    config: Config, layer_memory: LayerMemory, contents: BatchContents, stage: int, forward_only: bool = False
) -> MicroBatchTimeline:
    """Run a micro batch through a rank of pipeline stage `stage`.

    forward_only: keep nothing for a backward pass, as in generation; the head is left out.
    """
    timeline = ActivationTimeline()
    run = _StagePass(timeline, config, layer_memory, contents, stage)
    if forward_only:
        run.forward_only()
        return MicroBatchTimeline(timeline, [])
    run.forward()
    run.backward()
    for before, after in reversed(list(itertools.pairwise(run.ends))):
        after.subtract(before)
    return MicroBatchTimeline(timeline, run.ends)


def activations(
    config: Config, layer_memory: LayerMemory, contents: BatchContents, stage: int, micro_batches: int
) -> Activations:
    """Plan the activations of a rank of pipeline stage `stage` in a step of `micro_batches` with these contents."""
    return micro_batch_timeline(config, layer_memory, contents, stage).in_pipeline(config, stage, micro_batches)


def waiting(config: Config, stage: int, micro_batches: int, sizes: Sequence[int]) -> list[int]:
    """Count for each model chunk the forward passes that wait at the peak, without that of the current micro batch.

    sizes: bytes that a pass of each chunk keeps. The schedule is 1F1B, or its interleaved form, in which groups of PP
    micro batches pass one chunk after the other (arXiv 2104.04473, megatron/core/pipeline_parallel/schedules.py). -1
    for a chunk without any pass at that moment, because the current micro batch was planned with a pass of each chunk.
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
    # The pattern repeats once every chunk has had its group. After the last forward pass only backward passes are left.
    for number in range(min(total - ahead, 2 * stages * chunks) or 1):
        if ahead + number < total:
            alive[(ahead + number) // stages % chunks] += 1
        size = sum(count * each for count, each in zip(alive, sizes, strict=True))
        if size > most:
            most, found = size, list(alive)
        alive[chunks - 1 - number // stages % chunks] -= 1
    return [count - 1 for count in found]


class _StagePass:
    """The forward and backward pass of one micro batch through a stage."""

    def __init__(
        self,
        timeline: ActivationTimeline,
        config: Config,
        layer_memory: LayerMemory,
        contents: BatchContents,
        stage: int,
    ):
        self.timeline, self.config, self.layer_memory, self.contents = timeline, config, layer_memory, contents
        self.stage, self.rows = stage, rows_of_a_rank(config, contents)
        self.first, self.last = stage == 0, stage == config.layout.pipeline_parallel - 1
        self.decoder = DecoderOperators(timeline, config, layer_memory, self.rows)
        self.element = ELEMENT_BYTES[config.training.precision]
        self.output: PlannedTensor | None = None
        self.received: PlannedTensor | None = None
        self.ends: list[Counter[str]] = []
        """Live bytes by kind after the forward pass of each chunk."""

    def forward(self) -> None:
        timeline = self.timeline
        timeline.hold(PlannedStorage(self.decoder.fp8_weights(layers_per_stage(self.config)[self.stage]), FP8_WEIGHTS))
        if self.layer_memory.batch_on_device and self.first:
            tiles = tiles_of_a_rank(self.config, self.contents)
            timeline.hold(PlannedStorage(tiles * PIXEL_BYTES * self.config.model.vision.image_size**2, "vision"))
        hidden = self._input()
        hidden = self._layers(hidden)
        self.output = self._loss(hidden) if self.last else hidden
        if not self.last and self.layer_memory.frees_stage_outputs:
            timeline.drop(hidden)  # sent to the next stage
        self._end_chunk()

    def _end_chunk(self) -> None:
        """Record the live bytes at the end of a chunk's forward pass."""
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

    def _input(self) -> PlannedTensor:
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

    def _layers(self, hidden: PlannedTensor) -> PlannedTensor:
        timeline, config = self.timeline, self.config
        recompute, count = config.training.recompute, layers_per_stage(config)[self.stage]
        with timeline.part("attention"):
            # Rotary angles in fp32.
            timeline.tensor(4 * self.rows.attention * config.model.language.head_dim, differentiable=False)
        full = recompute.granularity == "full"
        each = recompute.num_layers if full and recompute.method == "uniform" else 1
        # The recomputed layers are the first ones of each model chunk.
        chunk = count // config.layout.virtual_pipeline
        recomputed = (chunk if recompute.method == "uniform" else recompute.num_layers) if full else 0
        layer = 0
        while layer < count:
            if layer and layer % chunk == 0:
                self._end_chunk()
            timeline.label = f"layer {layer + 1}"
            if layer % chunk < recomputed:
                group = min(each, chunk - layer % chunk)
                with timeline.part("layer inputs"):
                    hidden = timeline.checkpoint(self._some_layers(group), hidden, offload=recompute.offload)
                layer += group
            else:
                hidden = self.decoder.layer(hidden)
                layer += 1
        return hidden

    def _some_layers(self, count: int) -> Callable[[PlannedTensor], PlannedTensor]:
        def run(hidden: PlannedTensor) -> PlannedTensor:
            for _ in range(count):
                hidden = self.decoder.layer(hidden)
            return hidden

        return run

    def _loss(self, hidden: PlannedTensor) -> PlannedTensor:
        """Final norm, selection of rows with loss, chunked cross-entropy with its gradients computed at once."""
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
            picked = timeline.operator([normed], selected, scratch=2 * selected if gathers else 0, drops=())
            vocabulary = language.vocab_size // layout.tensor_parallel
            chunk = min(config.training.loss_chunk_size, rows)
            # The logits of a chunk are live until those of the next chunk exist.
            logits = min(2 * chunk, rows) * vocabulary * (4 if self.element == 4 else 4 + 4 + self.element)
            weight = vocabulary * language.hidden_size
            product = self.element * weight if trained and self.element != 4 else 0
            # The gradients of rows and weight exist when the backward pass begins.
            loss = timeline.loss(picked, 4 * weight if trained else 0, logits + product, product)
            timeline.drop(normed)
        return loss
