"""Operators of vision encoder and projector, and of the exchange of feature rows, as calls on an activation timeline.

They follow longvita/model/vision.py, layer_specs.py, projector.py and LongVITA._embed.
"""

from __future__ import annotations

from longvita.config.schema import Config
from longvita.planning.activation_timeline import ActivationTimeline, PlannedTensor
from longvita.planning.batch_contents import BatchContents
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.platforms.layer_memory import LayerMemory


class VisionOperators:
    """Vision encoder and projector over `tiles` tiles at once; replicated on each rank of the first pipeline stage."""

    def __init__(self, timeline: ActivationTimeline, config: Config, layer_memory: LayerMemory, tiles: int):
        self.timeline, self.config, self.layer_memory = timeline, config, layer_memory
        vision, trainable = config.model.vision, config.training.trainable
        self.element = ELEMENT_BYTES[config.training.precision]
        self.trained, self.projector_trained = "vision" in trainable, "projector" in trainable
        self.positions = tiles * vision.sequence_length
        self.hidden = self.positions * vision.hidden_size * self.element
        self.ffn = self.positions * vision.ffn_hidden_size * self.element
        self.tiles = tiles

    def encode(self) -> PlannedTensor:
        """Compute the feature rows of the tiles."""
        timeline = self.timeline
        with timeline.part("vision"):
            if self.trained:
                hidden = self._encoder()
            else:
                with timeline.without_gradients():
                    hidden = self._encoder()
        with timeline.part("vision features"):
            return self._project(hidden)

    def _encoder(self) -> PlannedTensor:
        timeline = self.timeline
        hidden = self._patches()
        for layer in range(self.config.model.vision.num_layers):
            timeline.label = f"vision layer {layer + 1}"
            if self.config.training.recompute.vision:
                hidden = timeline.checkpoint(self._layer, hidden)
            else:
                hidden = self._layer(hidden)
        return hidden

    def _patches(self) -> PlannedTensor:
        """Patch convolution, class token, position embeddings."""
        timeline, vision = self.timeline, self.config.model.vision
        timeline.label = "patches"
        cast = self.tiles * 3 * vision.image_size**2 * self.element
        if self.element != 4:
            tiles = timeline.tensor(cast, differentiable=False)
        else:
            tiles = timeline.tensor(0, differentiable=False)  # those of the batch
        weight = 3 * vision.patch_size**2 * vision.hidden_size * self.element
        patches = timeline.operator(
            [tiles], self.hidden, keeps=[tiles], weight_gradient=weight if self.trained else 0, trained=self.trained
        )
        with_class = timeline.operator([patches], self.hidden)
        placed = timeline.operator([with_class], self.hidden, passes_gradient=True)
        return timeline.operator([placed], self.hidden, passes_gradient=True)

    def _layer(self, x: PlannedTensor) -> PlannedTensor:
        timeline = self.timeline
        normed = self._norm(x)
        mixed = self._linear(normed, 3 * self.hidden, bias=True)
        parts = timeline.views(mixed, [self.hidden] * 3)
        vision = self.config.model.vision
        statistics = self.positions * vision.num_attention_heads * self.layer_memory.statistics_bytes
        out = timeline.operator(parts, self.hidden, keeps=parts, keeps_output=True, keeps_new=statistics, drops=())
        projected = self._linear(out, self.hidden, copies=self.hidden)
        timeline.drop(out, normed, *parts)
        middle = self._scale_and_add(projected, x)
        normed = self._norm(middle)
        wide = self._linear(normed, self.ffn)
        biased = timeline.operator([wide], self.ffn, passes_gradient=True)
        activated = timeline.operator([biased], self.ffn, keeps=[biased])
        narrow = self._linear(activated, self.hidden)
        timeline.drop(activated, normed)
        return self._scale_and_add(narrow, middle)

    def _norm(self, x: PlannedTensor) -> PlannedTensor:
        return self.timeline.operator([x], self.hidden, keeps=[x], trained=self.trained, drops=())

    def _linear(self, x: PlannedTensor, size: int, bias: bool = False, copies: int = 0) -> PlannedTensor:
        """Call a linear layer; the caller still holds x. copies: bytes of rows that are copied to be contiguous."""
        weight = x.size // max(self.positions, 1) * size // max(self.positions, 1) // self.element
        return self.timeline.operator(
            [x],
            size,
            keeps=[x] if self.trained else [],
            scratch=max(size if bias else 0, copies),
            backward_scratch=copies,
            weight_gradient=weight if self.trained else 0,
            trained=self.trained,
            drops=(),
        )

    def _scale_and_add(self, output: PlannedTensor, residual: PlannedTensor) -> PlannedTensor:
        """Bias, layer scale and residual sum; the biased output is kept for the scale's gradient."""
        timeline = self.timeline
        biased = timeline.operator([output], self.hidden, passes_gradient=True)
        # One kernel computes scale and sum; only their gradients are separate.
        scaled = timeline.operator([biased], 0, keeps=[biased], backward_scratch=self.hidden, trained=self.trained)
        return timeline.operator([scaled, residual], self.hidden, passes_gradient=True)

    def _project(self, hidden: PlannedTensor) -> PlannedTensor:
        timeline, model = self.timeline, self.config.model
        timeline.label = "projector"
        rows = self.tiles * model.tokens_per_tile
        width = model.vision.hidden_size * model.projector.downsample**2
        wide, middle = rows * width * self.element, rows * model.projector.hidden_size * self.element
        shuffled = timeline.operator([hidden], wide, scratch=wide, backward_scratch=2 * wide)
        trained, weight = self.projector_trained, 0
        normed = timeline.operator([shuffled], wide, keeps=[shuffled], trained=trained)
        weight = width * model.projector.hidden_size * self.element if trained else 0
        first = timeline.operator(
            [normed], middle, keeps=[normed] if trained else [], weight_gradient=weight, trained=trained
        )
        activated = timeline.operator([first], middle, keeps=[first])
        weight = model.projector.hidden_size * model.language.hidden_size * self.element if trained else 0
        return timeline.operator(
            [activated],
            rows * model.language.hidden_size * self.element,
            keeps=[activated] if trained else [],
            weight_gradient=weight,
            trained=trained,
        )


def tiles_of_a_rank(config: Config, contents: BatchContents) -> int:
    """Return the most tiles that one rank encodes: those of a micro batch are split over TP x CP ranks."""
    return -(-contents.tiles // (config.layout.tensor_parallel * config.layout.context_parallel))


def place_features(
    timeline: ActivationTimeline,
    config: Config,
    layer_memory: LayerMemory,
    contents: BatchContents,
    embeddings: PlannedTensor,
) -> PlannedTensor:
    """Encode the rank's tiles chunk by chunk, send their rows to the ranks of their positions and insert them there.

    A micro batch without tiles encodes a blank one, times zero, where encoder or projector are trained.
    """
    if not contents.tiles:
        return _with_blank_tile(timeline, config, layer_memory, embeddings)
    left, chunk = tiles_of_a_rank(config, contents), config.training.vision_chunk_size
    ranks = config.layout.tensor_parallel * config.layout.context_parallel
    row = config.model.tokens_per_tile * config.model.language.hidden_size * ELEMENT_BYTES[config.training.precision]
    copies = 1 if config.layout.sequence_parallel else config.layout.tensor_parallel
    while left > 0:
        tiles = min(left, chunk)
        left -= tiles
        rows = VisionOperators(timeline, config, layer_memory, tiles).encode()
        with timeline.part("vision features"):
            received = tiles * row * copies
            if ranks > 1:
                sent = timeline.operator([rows], received)
                rows = timeline.operator([sent], received, backward_scratch=tiles * row)
            embeddings = timeline.operator([embeddings, rows], embeddings.size)
    return embeddings


def _with_blank_tile(
    timeline: ActivationTimeline, config: Config, layer_memory: LayerMemory, embeddings: PlannedTensor
) -> PlannedTensor:
    """LongVITA._embed without tiles: because of the blank tile, the embeddings get gradients."""
    if not {"vision", "projector"} & set(config.training.trainable):
        return embeddings
    rows = VisionOperators(timeline, config, layer_memory, 1).encode()
    with timeline.part("vision features"):
        nothing = timeline.operator([rows], 0)
        return timeline.operator([embeddings, nothing], embeddings.size, passes_gradient=True)
