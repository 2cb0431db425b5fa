"""Bytes of activations of a training step on a rank of a pipeline stage, moment by moment."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.config.sizes import layers_per_stage
from longvita.planning.activation_timeline import ActivationTimeline, Moment, PlannedStorage, PlannedTensor
from longvita.planning.batch_contents import BatchContents
from longvita.planning.decoder_activations import DecoderOperators, RankRows
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.planning.vision_activations import VisionOperators
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


class MicroBatchTimeline:
    """The activations of one micro batch on a rank of one stage, in a forward and a backward pass.

    forward_only: keep nothing for a backward pass, as in generation; the head is left out.
    """

    def __init__(
        self, config: Config, layer_memory: LayerMemory, contents: BatchContents, stage: int, forward_only: bool = False
    ):
        self.config, self.layer_memory, self.contents = config, layer_memory, contents
        layout = config.layout
        self.rows, self.layers = rows_of_a_rank(config, contents), layers_per_stage(config)[stage]
        self.tiles = -(-contents.tiles // (layout.tensor_parallel * layout.context_parallel))
        """Most tiles that one rank encodes: those of a micro batch are split over TP x CP ranks."""
        self.first, self.last = stage == 0, stage == layout.pipeline_parallel - 1
        self.timeline = ActivationTimeline()
        self.decoder = DecoderOperators(self.timeline, config, layer_memory, self.rows)
        self.element = ELEMENT_BYTES[config.training.precision]
        self.kept: list[Counter[str]] = []
        """For each model chunk, bytes by kind between its forward and its backward pass, without buffers that are
        common to all micro batches."""
        if forward_only:
            with self.timeline.without_gradients():
                self._layers(self._input())
        else:
            self._run()
            for before, after in reversed(list(itertools.pairwise(self.kept))):
                after.subtract(before)

    def in_pipeline(self, stage: int, micro_batches: int) -> Activations:
        """Add the other micro batches, of `micro_batches` a step, that wait for their backward pass at the peak."""
        sizes = [sum(kept.values()) for kept in self.kept]
        return self.with_waiting(waiting(self.config, stage, micro_batches, sizes))

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

    def _run(self) -> None:
        timeline = self.timeline
        timeline.hold(PlannedStorage(self.decoder.fp8_weights(self.layers), FP8_WEIGHTS))
        if self.layer_memory.batch_on_device and self.first:
            size = self.tiles * PIXEL_BYTES * self.config.model.vision.image_size**2
            timeline.hold(PlannedStorage(size, "vision"))
        hidden = self._input()
        output = self._layers(hidden)
        if self.last:
            output = self._loss(output)
        elif self.layer_memory.frees_stage_outputs:
            timeline.drop(output)  # sent to the next stage
        self._end_chunk()
        timeline.kind = "pipeline"
        timeline.backward(output)
        if not self.first:
            timeline.take_gradient(hidden)
            timeline.drop(hidden)

    def _end_chunk(self) -> None:
        """Record the live bytes at the end of a chunk's forward pass."""
        live = Counter(self.timeline.live)
        live["communication"] -= self.timeline.gathered
        del live[FP8_WEIGHTS]
        self.kept.append(live)

    def _input(self) -> PlannedTensor:
        timeline, language, copying = self.timeline, self.config.model.language, self.layer_memory.copying_collectives
        if not self.first:
            with timeline.part("pipeline"):
                received = timeline.tensor(self.decoder.hidden)
            timeline.hold(received.storage)  # the schedule keeps it for its gradient
            return received
        timeline.label = "embedding"
        trained = "language" in self.config.training.trainable
        with timeline.part("embedding"):
            weight = language.vocab_size // self.config.layout.tensor_parallel * language.hidden_size * self.element
            embeddings = timeline.operator(
                [timeline.tensor(0, differentiable=False)],
                self.decoder.hidden,
                scratch=self.decoder.gathered * (3 if copying else 1),
                backward_scratch=self.decoder.gathered * (2 if copying else 1),
                weight_gradient=weight if trained else 0,
                trained=trained,
            )
        return self._place_features(embeddings)

    def _place_features(self, embeddings: PlannedTensor) -> PlannedTensor:
        """Encode the rank's tiles chunk by chunk, send their rows to the ranks of their positions and insert them there
        (LongVITA._embed).

        A micro batch without tiles encodes a blank one, times zero, where encoder or projector are trained; because of
        it, the embeddings get gradients.
        """
        timeline, layout, training = self.timeline, self.config.layout, self.config.training
        row = self.config.model.tokens_per_tile * self.config.model.language.hidden_size * self.element
        copies = 1 if layout.sequence_parallel else layout.tensor_parallel
        blank = not self.contents.tiles and not {"vision", "projector"}.isdisjoint(training.trainable)
        for first in range(0, 1 if blank else self.tiles, training.vision_chunk_size):
            tiles = 1 if blank else min(self.tiles - first, training.vision_chunk_size)
            rows = VisionOperators(timeline, self.config, self.layer_memory, tiles).encode()
            with timeline.part("vision features"):
                if blank:
                    rows = timeline.operator([rows], 0)
                elif layout.tensor_parallel * layout.context_parallel > 1:
                    sent = timeline.operator([rows], tiles * row * copies)
                    rows = timeline.operator([sent], sent.size, backward_scratch=tiles * row)
                embeddings = timeline.operator([embeddings, rows], embeddings.size, passes_gradient=blank)
        return embeddings

    def _layers(self, hidden: PlannedTensor) -> PlannedTensor:
        timeline, config = self.timeline, self.config
        recompute = config.training.recompute
        with timeline.part("attention"):
            # Rotary angles in fp32.
            timeline.tensor(4 * self.rows.attention * config.model.language.head_dim, differentiable=False)
        # The recomputed layers are the first ones of each model chunk.
        chunk, uniform = self.layers // config.layout.virtual_pipeline, recompute.method == "uniform"
        recomputed = (chunk if uniform else recompute.num_layers) if recompute.granularity == "full" else 0
        layer = 0
        while layer < self.layers:
            if layer and layer % chunk == 0:
                self._end_chunk()
            timeline.label = f"layer {layer + 1}"
            if layer % chunk < recomputed:
                group = min(recompute.num_layers if uniform else 1, chunk - layer % chunk)
                with timeline.part("layer inputs"):
                    run = functools.partial(self._some_layers, group)
                    hidden = timeline.checkpoint(run, hidden, offload=recompute.offload)
                layer += group
            else:
                hidden = self.decoder.layer(hidden)
                layer += 1
        return hidden

    def _some_layers(self, count: int, hidden: PlannedTensor) -> PlannedTensor:
        for _ in range(count):
            hidden = self.decoder.layer(hidden)
        return hidden

    def _loss(self, hidden: PlannedTensor) -> PlannedTensor:
        """Final norm, selection of rows with loss, chunked cross-entropy with its gradients computed at once."""
        timeline, config = self.timeline, self.config
        language, layout = config.model.language, config.layout
        trained = "language" in config.training.trainable
        timeline.label = "loss"
        with timeline.part("head"):
            normed = self.decoder.norm(hidden)
            timeline.drop(hidden)
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


def activations(
    config: Config, layer_memory: LayerMemory, contents: BatchContents, stage: int, micro_batches: int
) -> Activations:
    """Plan the activations of a rank of pipeline stage `stage` in a step of `micro_batches` with these contents."""
    return MicroBatchTimeline(config, layer_memory, contents, stage).in_pipeline(stage, micro_batches)


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
