"""Operators of vision encoder and projector, as calls on an activation timeline.

They follow longvita/model/vision.py, layer_specs.py and projector.py.
"""

from __future__ import annotations

import contextlib

from longvita.config.schema import Config
from longvita.planning.activation_timeline import ActivationTimeline, PlannedTensor
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
        with timeline.part("vision"), contextlib.nullcontext() if self.trained else timeline.without_gradients():
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
        cast = self.tiles * 3 * vision.image_size**2 * self.element if self.element != 4 else 0  # the batch is in fp32
        weight = 3 * vision.patch_size**2 * vision.hidden_size * self.element
        patches = timeline.linear(timeline.tensor(cast, differentiable=False), self.hidden, weight, self.trained)
        with_class = timeline.operator([patches], self.hidden)
        placed = timeline.operator([with_class], self.hidden, passes_gradient=True)
        return timeline.operator([placed], self.hidden, passes_gradient=True)

    def _layer(self, x: PlannedTensor) -> PlannedTensor:
        timeline = self.timeline
        normed = self._norm(x)
        mixed = self._linear(normed, 3 * self.hidden, scratch=3 * self.hidden)
        parts = timeline.views(mixed, [self.hidden] * 3)
        vision = self.config.model.vision
        statistics = self.positions * vision.num_attention_heads * self.layer_memory.statistics_bytes
        out = timeline.operator(parts, self.hidden, keeps=parts, keeps_output=True, keeps_new=statistics, drops=())
        # Its rows are copied to be contiguous.
        projected = self._linear(out, self.hidden, scratch=self.hidden, backward_scratch=self.hidden)
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

    def _linear(self, x: PlannedTensor, size: int, **scratch: int) -> PlannedTensor:
        """Call a linear layer; the caller still holds x."""
        weight = x.size // self.positions * size // self.positions // self.element
        return self.timeline.linear(x, size, weight, self.trained, drops=(), **scratch)

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
        trained, out = self.projector_trained, model.language.hidden_size * self.element
        normed = timeline.operator([shuffled], wide, keeps=[shuffled], trained=trained)
        first = timeline.linear(normed, middle, width * model.projector.hidden_size * self.element, trained)
        activated = timeline.operator([first], middle, keeps=[first])
        return timeline.linear(activated, rows * out, model.projector.hidden_size * out, trained)
