"""Operators of a decoder layer, as calls on an activation timeline.

They follow the code that runs: megatron-core 0.16.1's TransformerLayer, SelfAttention and MLP with our attention and
norms (longvita/platforms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longvita.config.schema import Config
from longvita.config.sizes import local_query_groups
from longvita.planning.activation_timeline import ActivationTimeline, PlannedTensor
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.platforms.layer_memory import LayerMemory


@dataclass(frozen=True)
class RankRows:
    """Rows of a micro batch on a rank."""

    attention: int
    """Rows of its CP shard: input of attention, MLP and their linear layers."""
    residual: int
    """Rows of norms and residuals: under sequence parallelism, a TP rank's part of the CP shard."""


class DecoderOperators:
    """Layers of the language model on one rank. Sizes are in bytes."""

    def __init__(self, timeline: ActivationTimeline, config: Config, layer_memory: LayerMemory, rows: RankRows):
        self.timeline, self.config, self.layer_memory, self.rows = timeline, config, layer_memory, rows
        language, self.tp = config.model.language, config.layout.tensor_parallel
        self.element = ELEMENT_BYTES[config.training.precision]
        self.trained = "language" in config.training.trainable
        self.fp8 = config.training.fp8 is not None
        self.copies = 2 if layer_memory.copying_collectives else 1
        """Tensors of all rows that a collective over TP takes."""
        self.hidden = rows.residual * language.hidden_size * self.element
        self.gathered = rows.attention * language.hidden_size * self.element if config.layout.sequence_parallel else 0
        """Rows that sequence parallelism gathers from the TP ranks."""
        self.query = rows.attention * language.query_width // self.tp * self.element
        self.key = rows.attention * local_query_groups(config) * language.head_dim * self.element
        self.angles = rows.attention * language.head_dim * self.element
        self.heads = language.num_attention_heads // self.tp
        self.ffn = rows.attention * language.ffn_hidden_size // self.tp * self.element
        self.weights = {
            "qkv": language.hidden_size * (language.query_width + 2 * language.num_query_groups * language.head_dim),
            "proj": language.hidden_size * language.query_width,
            "fc1": 2 * language.hidden_size * language.ffn_hidden_size,
            "fc2": language.hidden_size * language.ffn_hidden_size,
        }

    def layer(self, x: PlannedTensor) -> PlannedTensor:
        """Call one layer: release x, return the next hidden state."""
        return self._mlp(self._attention(x))

    # Attention

    def _attention(self, x: PlannedTensor) -> PlannedTensor:
        timeline = self.timeline
        with timeline.part("attention"):
            normed = self.norm(x)
            width = self.query + 2 * self.key
            mixed = self._column(normed, width, "qkv", bias=width)
            query, key, value = timeline.views(mixed, [self.query, self.key, self.key])
            if self.query != self.key:
                query = timeline.operator([query], self.query, passes_gradient=True)
            query, key = self._rotary(query, self.query), self._rotary(key, self.key)
            out = self._core_attention(query, key, value)
            projected = self._row(out, "proj")
            timeline.drop(normed, query, key, value)
            return timeline.operator([projected, x], self.hidden, passes_gradient=True)

    def _core_attention(self, query: PlannedTensor, key: PlannedTensor, value: PlannedTensor) -> PlannedTensor:
        timeline, cp = self.timeline, self.config.layout.context_parallel
        statistics = self.rows.attention * self.heads * self.layer_memory.statistics_bytes
        selective = self.config.training.recompute.granularity == "selective"
        inputs, pairs = [query, key, value], 2 * self.key if cp > 1 else 0
        return timeline.operator(
            inputs,
            self.query,
            keeps=inputs,
            keeps_output=not selective,
            keeps_new=0 if selective else statistics,
            scratch=3 * pairs,
            backward_scratch=5 * pairs + (self.query + statistics if selective else 0),
            drops=(),
        )

    def _rotary(self, tensor: PlannedTensor, size: int) -> PlannedTensor:
        """Apply the rotary embedding; unfused, it keeps cosines and sines and makes each product separately."""
        if self.layer_memory.fused_rotary:
            return self.timeline.operator([tensor], size)
        return self.timeline.operator(
            [tensor], size, keeps_new=2 * self.angles, scratch=2 * size + self.angles, backward_scratch=2 * size
        )

    # MLP

    def _mlp(self, middle: PlannedTensor) -> PlannedTensor:
        timeline, chunk = self.timeline, self.config.training.mlp_chunk_size
        with timeline.part("mlp"):
            normed = self.norm(middle)
            # Under sequence parallelism a chunk consists of this rank's rows, and gathers those of the other ranks.
            if chunk is not None and self.rows.residual > chunk:
                out = self._chunked_mlp(normed, chunk / self.rows.residual)
            else:
                out = self._plain_mlp(normed, 1.0)
            timeline.drop(normed)
            return timeline.operator([out, middle], self.hidden, passes_gradient=True)

    def _plain_mlp(self, normed: PlannedTensor, fraction: float) -> PlannedTensor:
        """Call the MLP on a fraction of the rows; the caller still holds `normed`."""
        timeline, ffn = self.timeline, int(self.ffn * fraction)
        gate_up = self._column(normed, 2 * ffn, "fc1", fraction=fraction)
        if self.layer_memory.fused:
            activated = timeline.operator([gate_up], ffn, keeps=[gate_up])
        else:
            gate, up = timeline.views(gate_up, [ffn, ffn])
            silu = timeline.operator([gate], ffn, keeps=[gate], drops=())
            shifted = timeline.operator([up], ffn, passes_gradient=True)  # Megatron adds glu_linear_offset, zero or not
            activated = timeline.operator([silu, shifted], ffn, keeps=[silu, shifted])
            timeline.drop(gate)
        return self._row(activated, "fc2", fraction)

    def _chunked_mlp(self, normed: PlannedTensor, fraction: float) -> PlannedTensor:
        """Call longvita.model.chunked_mlp: the input is kept; the backward pass computes each chunk again."""
        timeline, size = self.timeline, int(self.hidden * fraction)

        def scratch(backward: bool) -> int:
            inner = ActivationTimeline(gathered=timeline.gathered, _recording=backward)
            part = DecoderOperators(inner, self.config, self.layer_memory, self.rows)
            out = part._plain_mlp(inner.tensor(size), fraction)
            if backward:
                inner.backward(out)
            return inner.peak - size

        return timeline.operator(
            [normed],
            self.hidden,
            keeps=[normed],
            scratch=scratch(backward=False),
            backward_scratch=scratch(backward=True),
            weight_gradient=self._weight_bytes("fc1") + self._weight_bytes("fc2") if self.trained else 0,
            trained=self.trained,
            drops=(),
        )

    # Norms and linear layers

    def norm(self, x: PlannedTensor) -> PlannedTensor:
        """Call RMSNorm; the caller still holds x. Our own keeps the normed rows, a fused one the input itself."""
        if self.layer_memory.fused:
            return self.timeline.operator([x], self.hidden, keeps=[x], trained=self.trained, drops=())
        return self.timeline.operator(
            [x], self.hidden, keeps_new=self.hidden, backward_scratch=self.hidden, trained=self.trained, drops=()
        )

    def fp8_weights(self, layers: int) -> int:
        """Return the bytes of the FP8 copies of `layers` layers' weights, kept from one micro batch to the next: plain
        and transposed, one byte an element each.
        """
        return 2 * layers * sum(self.weights.values()) // self.tp if self.fp8 else 0

    def _weight_bytes(self, name: str) -> int:
        return self.weights[name] // self.tp * self.element

    def _linear(self, x: PlannedTensor, size: int, name: str, **options: Any) -> PlannedTensor:
        """Call a linear layer.

        For its weight's gradient it keeps the input, or with FP8 a copy of one byte an element (Transformer Engine,
        pytorch/module/linear.py and layernorm_linear.py, 2.x).
        """
        copy = x.size // self.element if self.fp8 else 0
        return self.timeline.linear(x, size, self._weight_bytes(name), self.trained, copy, **options)

    def _column(self, x: PlannedTensor, size: int, name: str, bias: int = 0, fraction: float = 1.0) -> PlannedTensor:
        """Call ColumnParallelLinear; the caller still holds x. bias: bytes of the output before its bias is added."""
        gathered = int(self.gathered * fraction)
        # The gradient of all rows, before reduce-scatter; gloo copies it first.
        options = {"scratch": bias, "backward_scratch": gathered * self.copies}
        if self.trained and self.layer_memory.gather_buffer:
            options["gathers"] = gathered
        else:
            options["scratch"] = max(bias, gathered)
            # The backward pass gathers the input only for the weight's gradient.
            options["backward_scratch"] += gathered if self.trained else 0
        return self._linear(x, size, name, drops=(), **options)

    def _row(self, x: PlannedTensor, name: str, fraction: float = 1.0) -> PlannedTensor:
        """Call RowParallelLinear, with its reduction over TP."""
        scratch = int(self.gathered * fraction) * self.copies
        options: dict[str, Any] = {"scratch": scratch, "backward_scratch": scratch}
        if not self.trained and self.layer_memory.keeps_frozen_row_inputs:
            options["keeps"] = [x]
        return self._linear(x, int(self.hidden * fraction), name, **options)
