"""The operators of a decoder layer, of the vision tower and of the projector, as calls on a timeline.

They follow the code that runs: megatron-core 0.16.1's TransformerLayer, SelfAttention and MLP with our attention and
norms (longvita/platforms), longvita/model/layer_specs.py and longvita/model/projector.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longvita.config.schema import Config
from longvita.planning.activation_timeline import ActivationTimeline, Tensor
from longvita.planning.parameters import ELEMENT_BYTES
from longvita.platforms.layer_memory import LayerMemory


@dataclass(frozen=True)
class Rows:
    """How many rows of a micro batch a rank has to do with."""

    attention: int
    """Those of its context-parallel share, which column and row linears, attention and MLP see."""
    residual: int
    """Those that norms and residuals see: a TP rank's part under sequence parallelism."""


class Decoder:
    """Layers of the language model on one rank."""

    def __init__(self, timeline: ActivationTimeline, config: Config, layer_memory: LayerMemory, rows: Rows):
        self.timeline, self.config, self.layer_memory, self.rows = timeline, config, layer_memory, rows
        language, self.tp = config.model.language, config.layout.tensor_parallel
        self.element = ELEMENT_BYTES[config.training.precision]
        self.trained = "language" in config.training.trainable
        self.fp8 = config.training.fp8 is not None
        self.sequence_parallel = config.layout.sequence_parallel
        self.hidden = rows.residual * language.hidden_size * self.element
        self.full_hidden = rows.attention * language.hidden_size * self.element
        self.query = rows.attention * language.query_width // self.tp * self.element
        groups = max(language.num_query_groups // self.tp, 1)
        self.key = rows.attention * groups * language.head_dim * self.element
        self.angles = rows.attention * language.head_dim * self.element
        self.heads = language.num_attention_heads // self.tp
        self.ffn = rows.attention * language.ffn_hidden_size // self.tp * self.element
        self.weights = {
            "qkv": language.hidden_size * (language.query_width + 2 * language.num_query_groups * language.head_dim),
            "proj": language.hidden_size * language.query_width,
            "fc1": 2 * language.hidden_size * language.ffn_hidden_size,
            "fc2": language.hidden_size * language.ffn_hidden_size,
        }

    def layer(self, x: Tensor) -> Tensor:
        """One layer: lets go of x, gives the next hidden state."""
        middle = self._attention(x)
        return self._mlp(middle)

    # Attention

    def _attention(self, x: Tensor) -> Tensor:
        timeline = self.timeline
        with timeline.part("attention"):
            normed = self.norm(x)
            mixed = self._column(normed, self.query + 2 * self.key, "qkv", bias=True)
            query, key, value = timeline.views(mixed, [self.query, self.key, self.key])
            if self.query != self.key:
                query = timeline.operator([query], self.query, shares_gradient=True)
            query, key = self._rotary(query, self.query), self._rotary(key, self.key)
            out = self._core_attention(query, key, value)
            projected = self._row(out, "proj")
            timeline.drop(normed, query, key, value)
            summed = timeline.operator([projected, x], self.hidden, shares_gradient=True)
        return summed

    def _core_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        timeline, cp = self.timeline, self.config.layout.context_parallel
        statistics = self.rows.attention * self.heads * self.layer_memory.statistics_bytes
        selective = self.config.training.recompute.granularity == "selective"
        inputs = [query, key, value]
        pairs = 2 * self.key
        return timeline.operator(
            inputs,
            self.query,
            keeps=inputs,
            keeps_output=not selective,
            keeps_new=0 if selective else statistics,
            scratch=3 * pairs if cp > 1 else 0,
            backward_scratch=(5 * pairs if cp > 1 else 0) + (self.query + statistics if selective else 0),
            last=(),
        )

    def _rotary(self, tensor: Tensor, size: int) -> Tensor:
        """Unfused it keeps cosines and sines of its rows, and makes each product apart."""
        if self.layer_memory.fused_rotary:
            return self.timeline.operator([tensor], size)
        return self.timeline.operator(
            [tensor], size, keeps_new=2 * self.angles, scratch=2 * size + self.angles, backward_scratch=2 * size
        )

    # MLP

    def _mlp(self, middle: Tensor) -> Tensor:
        timeline, chunk = self.timeline, self.config.training.mlp_chunk_size
        with timeline.part("mlp"):
            normed = self.norm(middle)
            # Under sequence parallelism a chunk is one of this rank's rows, and gathers those of the others.
            if chunk is not None and self.rows.residual > chunk:
                out = self._chunked_mlp(normed, chunk / self.rows.residual)
            else:
                out = self._plain_mlp(normed, 1.0)
            timeline.drop(normed)
            return timeline.operator([out, middle], self.hidden, shares_gradient=True)

    def _plain_mlp(self, normed: Tensor, share: float) -> Tensor:
        """The MLP over a share of the rows; `normed` stays with its holder."""
        timeline, ffn = self.timeline, int(self.ffn * share)
        gate_up = self._column(normed, 2 * ffn, "fc1", share=share)
        if self.layer_memory.fused:
            activated = timeline.operator([gate_up], ffn, keeps=[gate_up])
        else:
            gate, up = timeline.views(gate_up, [ffn, ffn])
            silu = timeline.operator([gate], ffn, keeps=[gate], last=())
            shifted = timeline.operator([up], ffn, shares_gradient=True)  # Megatron adds glu_linear_offset, zero or not
            activated = timeline.operator([silu, shifted], ffn, keeps=[silu, shifted])
            timeline.drop(gate)
        return self._row(activated, "fc2", share)

    def _chunked_mlp(self, normed: Tensor, share: float) -> Tensor:
        """longvita.model.chunked_mlp: the input is kept; the backward pass computes each chunk once more."""
        timeline = self.timeline
        inner = ActivationTimeline(gathered=timeline.gathered)
        part = Decoder(inner, self.config, self.layer_memory, self.rows)
        size = int(self.hidden * share)
        with inner.without_gradients():
            inner.drop(part._plain_mlp(inner.tensor(size), share))
        forward = inner.peak - size
        inner = ActivationTimeline(gathered=timeline.gathered)
        part = Decoder(inner, self.config, self.layer_memory, self.rows)
        inner.backward(part._plain_mlp(inner.tensor(size), share))
        sums = self._weight_gradient("fc1") + self._weight_gradient("fc2")
        return timeline.operator(
            [normed],
            self.hidden,
            keeps=[normed],
            scratch=forward,
            backward_scratch=inner.peak - size,
            weight_gradient=sums,
            trained=self.trained,
            last=(),
        )

    # Pieces

    def norm(self, x: Tensor) -> Tensor:
        """RMSNorm; x stays with its holder. Our own keeps the normed rows, a fused one the input itself."""
        if self.layer_memory.fused:
            return self.timeline.operator([x], self.hidden, keeps=[x], trained=self.trained, last=())
        return self.timeline.operator(
            [x], self.hidden, keeps_new=self.hidden, backward_scratch=self.hidden, trained=self.trained, last=()
        )

    def _kept_input(self, x: Tensor) -> dict[str, Any]:
        """What a linear layer keeps for its weight's gradient; with FP8 a copy of one byte an element (Transformer
        Engine, pytorch/module/linear.py and layernorm_linear.py, 2.x).
        """
        if not self.trained:
            return {}
        return {"keeps_new": x.size // self.element} if self.fp8 else {"keeps": [x]}

    def fp8_weights(self, layers: int) -> int:
        """Bytes of the FP8 copies of so many layers' weights, kept from one micro batch to the next: as they are and
        transposed, one byte each.
        """
        return 2 * layers * sum(self.weights.values()) // self.tp if self.fp8 else 0

    def _weight_gradient(self, name: str) -> int:
        return self.weights[name] // self.tp * self.element if self.trained else 0

    def _column(self, x: Tensor, size: int, name: str, bias: bool = False, share: float = 1.0) -> Tensor:
        """ColumnParallelLinear; x stays with its holder."""
        gathered = int(self.full_hidden * share) if self.sequence_parallel else 0
        scratch, backward_scratch = (size if bias else 0), 0
        if gathered and self.layer_memory.gather_buffer:
            self.timeline.gather_buffer(gathered)
        elif gathered:
            scratch, backward_scratch = max(scratch, gathered), gathered
        if gathered:  # the gradient of all rows, before each rank gets the sum of its own; gloo copies it first
            backward_scratch += gathered * (2 if self.layer_memory.copying_collectives else 1)
        return self.timeline.operator(
            [x],
            size,
            **self._kept_input(x),
            scratch=scratch,
            backward_scratch=backward_scratch,
            weight_gradient=self._weight_gradient(name),
            trained=self.trained,
            last=(),
        )

    def _row(self, x: Tensor, name: str, share: float = 1.0) -> Tensor:
        """RowParallelLinear and the sum over TP."""
        gathered = int(self.full_hidden * share) if self.sequence_parallel else 0
        copies = 2 if self.layer_memory.copying_collectives else 1
        return self.timeline.operator(
            [x],
            int(self.hidden * share),
            **self._kept_input(x),
            scratch=gathered * copies,
            backward_scratch=gathered * copies,
            weight_gradient=self._weight_gradient(name),
            trained=self.trained,
        )
