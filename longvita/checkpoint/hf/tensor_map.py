"""Map each of our parameters to the Hugging Face tensors that hold its values, and list both for a complete model.

Megatron's parameters differ from the published tensors in order along a single axis only: query, key and value rows
interleaved by group, gate and up halves, shards of tensor parallelism, padding. A parameter is therefore described by
*blocks*: runs of rows (axis 0) or columns (axis 1) of Hugging Face tensors, with their offset in the parameter. Maps
are checked when they are made; read_weights.py and gather_tensors.py follow them.

Shapes: C vision width, H language width, P projector width, v vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_names import FormatNames, needed
from longvita.config.schema import ModelConfig

Shape = tuple[int, ...]
_T = TypeVar("_T")
PARTS = ("vision", "projector", "language")
"""The parts of a model that a folder may hold."""


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a Hugging Face folder."""

    name: str
    shape: Shape
    part: str
    """vision, projector or language."""
    padded: bool = False
    """Whether the rows and columns that no parameter of ours covers are zero (the projector of InternVL)."""


@dataclass(frozen=True)
class TensorBlock:
    """`length` rows or columns of `tensor` from `start` on, and their offset in our parameter."""

    tensor: str
    start: int
    offset: int
    length: int


@dataclass(frozen=True)
class ParameterMap:
    """One parameter of ours, as one rank holds it, in terms of Hugging Face tensors.

    The constructor raises CheckpointError for blocks that overlap, leave a gap or reach past a tensor's end, and for
    tensors whose other dimensions differ from the parameter's.
    """

    parameter: str
    """Name with the layer's number in the whole model."""
    shape: Shape
    """Shape on this rank."""
    axis: int
    """The axis of the blocks, in the tensors and in the parameter."""
    blocks: tuple[TensorBlock, ...]
    tensors: dict[str, HFTensor] = field(hash=False)
    """The tensors of the blocks, by name."""
    mean_filled: int = 0
    """Number of last rows that the folder lacks (vocabulary padding); they are filled with the mean of its rows."""

    def __post_init__(self) -> None:
        end = 0
        for block in self.blocks:
            tensor = self.tensors[block.tensor]
            if block.offset != end or block.length <= 0:
                raise CheckpointError(f"{self.parameter}: block {block} does not start at {end}")
            if block.start < 0 or block.start + block.length > tensor.shape[self.axis]:
                raise CheckpointError(f"{self.parameter}: block {block} is not inside {tensor.name} {tensor.shape}")
            if _without(tensor.shape, self.axis) != _without(self.shape, self.axis):
                raise CheckpointError(f"{self.parameter} {self.shape} cannot come from {tensor.name} {tensor.shape}")
            end += block.length
        if end + self.mean_filled != self.shape[self.axis]:
            raise CheckpointError(f"{self.parameter} {self.shape}: blocks cover {end} of axis {self.axis}")


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def part_of_parameter(parameter: str) -> str:
    """The part (see PARTS) of one of our parameters."""
    return {"vision_model": "vision", "vision_projection": "projector"}.get(parameter.split(".")[0], "language")


_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")

# Transformer Engine fuses the norm into the linear layer after it: identical weights, other names.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class Mapper:
    """Makes the ParameterMap of each parameter, for one model, one format's names and one TP rank.

    `vocab_rows` is the number of rows of the folder's embedding (at most `vocab_size`; the rest is mean-filled). `tied`
    means that the folder has no output layer of its own. Raises CheckpointError where the sizes do not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        names: FormatNames,
        tp_rank: int = 0,
        tp_size: int = 1,
        vocab_rows: int | None = None,
        tied: bool | None = None,
    ) -> None:
        language = config.language
        self.config, self.names, self.tp_rank, self.tp_size = config, names, tp_rank, tp_size
        self.vocab_rows = language.vocab_size if vocab_rows is None else vocab_rows
        self.tied = language.tie_word_embeddings if tied is None else tied
        if self.vocab_rows > language.vocab_size:
            raise CheckpointError(
                f"the checkpoint's vocabulary has {self.vocab_rows} rows and model.language.vocab_size is "
                f"{language.vocab_size}; set model.language.vocab_size to at least {self.vocab_rows}"
            )
        for what in ("num_query_groups", "ffn_hidden_size", "vocab_size"):
            number = getattr(language, what)
            if number % tp_size:
                raise CheckpointError(f"model.language.{what} {number} is not a multiple of tensor_parallel {tp_size}")

    def map(self, parameter: str) -> ParameterMap:
        """The map of the parameter of that name, with the layer's number in the whole model."""
        root, _, module = parameter.partition(".")
        match, layer = _LAYER.fullmatch(module), None
        if match is not None:
            layer, module = match.groups()
            for fused, plain in _FUSED_NORMS.items():
                module = module.replace(fused, plain)
        if root == "vision_model":
            return self._vision(parameter, layer, module)
        if root == "vision_projection":
            return self._projector(parameter, module)
        if layer is None:
            return self._language_outside(parameter, module)
        return self._language_layer(parameter, layer, module)

    # ---- one tensor, replicated or split over TP

    def _replicated(self, parameter: str, name: str, shape: Shape) -> ParameterMap:
        tensor = HFTensor(name, shape, part_of_parameter(parameter))
        return ParameterMap(parameter, shape, 0, (TensorBlock(name, 0, 0, shape[0]),), {name: tensor})

    def _split_over_tp(self, parameter: str, names: tuple[str, ...], shape: Shape, axis: int) -> ParameterMap:
        """The rank's shard of each of the tensors, one after the other (gate and up, or one tensor alone)."""
        length = shape[axis] // self.tp_size
        blocks = tuple(TensorBlock(name, self.tp_rank * length, i * length, length) for i, name in enumerate(names))
        local = shape[:axis] + (length * len(names),) + shape[axis + 1 :]
        tensors = {name: HFTensor(name, shape, "language") for name in names}
        return ParameterMap(parameter, local, axis, blocks, tensors)

    # ---- parts

    def _vision(self, parameter: str, layer: str | None, module: str) -> ParameterMap:
        vision, names = self.config.vision, needed(self.names.vision)
        width, ffn = vision.hidden_size, vision.ffn_hidden_size
        prefix = names.prefix + (names.layer.format(layer) if layer else "")
        owner, _, kind = module.rpartition(".")
        if owner == "self_attention.linear_qkv":
            return self._vision_qkv(parameter, prefix, kind)
        single: dict[str, Shape] = {
            "class_embedding": (1, 1, width),
            "position_embedding": (1, vision.sequence_length, width),
            "self_attn_bda.scale": (width,),
            "mlp_bda.scale": (width,),
        }
        if module in single:
            return self._replicated(parameter, prefix + names.modules[module], single[module])
        weights: dict[str, Shape] = {
            "patch_embedding": (width, 3, vision.patch_size, vision.patch_size),
            "self_attention.linear_proj": (width, width),
            "mlp.linear_fc1": (ffn, width),
            "mlp.linear_fc2": (width, ffn),
            "input_layernorm": (width,),
            "pre_mlp_layernorm": (width,),
        }
        shape = self._known(parameter, owner, weights)
        name = f"{prefix}{names.modules[owner]}.{kind}"
        return self._replicated(parameter, name, shape[:1] if kind == "bias" else shape)

    def _vision_qkv(self, parameter: str, prefix: str, kind: str) -> ParameterMap:
        """Megatron's rows are q, k, v of head 0, then of head 1, ...; the published ones all q, all k, all v."""
        vision, names = self.config.vision, needed(self.names.vision)
        width, head = vision.hidden_size, vision.hidden_size // vision.num_attention_heads
        tail: Shape = (width,) if kind == "weight" else ()
        tensors, blocks = {}, []
        thirds = [module for module, _ in names.qkv]
        for module, _ in names.qkv:
            name = f"{prefix}{module}.{kind}"
            tensors[name] = HFTensor(name, (width * thirds.count(module), *tail), "vision")
        for number in range(vision.num_attention_heads):
            for i, (module, third) in enumerate(names.qkv):
                start = third * width + number * head
                blocks.append(TensorBlock(f"{prefix}{module}.{kind}", start, (3 * number + i) * head, head))
        return ParameterMap(parameter, (3 * width, *tail), 0, tuple(blocks), tensors)

    def _projector(self, parameter: str, module: str) -> ParameterMap:
        names, middle = needed(self.names.projector), self.config.projector.hidden_size
        wide = self.config.vision.hidden_size * self.config.projector.downsample**2
        out = self.config.language.hidden_size
        inner = out if names.padded else middle
        if inner < middle:
            raise CheckpointError(
                f"the inner width of InternVL's projector is that of the language model ({out}), which cannot hold "
                f"model.projector.hidden_size {middle}; train with model.projector.hidden_size of at most {out}"
            )
        shapes: dict[str, tuple[str, Shape, Shape, int]] = {  # theirs, its shape, ours, axis of the padding
            "layernorm.weight": (names.norm + ".weight", (wide,), (wide,), 0),
            "layernorm.bias": (names.norm + ".bias", (wide,), (wide,), 0),
            "linear_fc1.weight": (names.fc1 + ".weight", (inner, wide), (middle, wide), 0),
            "linear_fc2.weight": (names.fc2 + ".weight", (out, inner), (out, middle), 1),
        }
        name, theirs, ours, axis = self._known(parameter, module, shapes)
        tensor = HFTensor(names.prefix + name, theirs, "projector", padded=theirs != ours)
        block = TensorBlock(tensor.name, 0, 0, ours[axis])
        return ParameterMap(parameter, ours, axis, (block,), {tensor.name: tensor})

    def _language_outside(self, parameter: str, module: str) -> ParameterMap:
        names = needed(self.names.language)
        if module == "decoder.final_layernorm.weight":
            return self._replicated(parameter, names.prefix + "norm.weight", (self.config.language.hidden_size,))
        vocabularies = {
            "embedding.word_embeddings.weight": names.embedding,
            "output_layer.weight": names.embedding if self.tied else names.head,
        }
        return self._vocabulary(parameter, self._known(parameter, module, vocabularies))

    def _vocabulary(self, parameter: str, name: str) -> ParameterMap:
        width, local = self.config.language.hidden_size, self.config.language.vocab_size // self.tp_size
        start = self.tp_rank * local
        present = max(0, min(local, self.vocab_rows - start))
        tensor = HFTensor(name, (self.vocab_rows, width), "language")
        blocks = (TensorBlock(name, start, 0, present),) if present else ()
        return ParameterMap(parameter, (local, width), 0, blocks, {name: tensor}, mean_filled=local - present)

    def _language_layer(self, parameter: str, layer: str, module: str) -> ParameterMap:
        language, names = self.config.language, needed(self.names.language)
        prefix, width, ffn = f"{names.prefix}layers.{layer}.", language.hidden_size, language.ffn_hidden_size
        if module.startswith("self_attention.linear_qkv."):
            return self._language_qkv(parameter, prefix, module.rsplit(".", 1)[1])
        split: dict[str, tuple[tuple[str, ...], Shape, int]] = {
            "self_attention.linear_proj.weight": (("self_attn.o_proj",), (width, language.query_width), 1),
            "mlp.linear_fc1.weight": (("mlp.gate_proj", "mlp.up_proj"), (ffn, width), 0),
            "mlp.linear_fc2.weight": (("mlp.down_proj",), (width, ffn), 1),
        }
        if module in split:
            modules, shape, axis = split[module]
            return self._split_over_tp(parameter, tuple(f"{prefix}{name}.weight" for name in modules), shape, axis)
        norms = {
            "input_layernorm.weight": "input_layernorm.weight",
            "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        }
        return self._replicated(parameter, prefix + self._known(parameter, module, norms), (width,))

    def _language_qkv(self, parameter: str, prefix: str, kind: str) -> ParameterMap:
        """Megatron's rows are a group's queries, its key and value, then the next group's; TP splits between groups."""
        language = self.config.language
        head, groups = language.head_dim, language.num_query_groups
        lengths = {"q": language.num_attention_heads // groups * head, "k": head, "v": head}
        tail: Shape = (language.hidden_size,) if kind == "weight" else ()
        names = {letter: f"{prefix}self_attn.{letter}_proj.{kind}" for letter in lengths}
        tensors = {names[x]: HFTensor(names[x], (groups * length, *tail), "language") for x, length in lengths.items()}
        blocks, offset = [], 0
        local = groups // self.tp_size
        for group in range(self.tp_rank * local, (self.tp_rank + 1) * local):
            for letter, length in lengths.items():
                blocks.append(TensorBlock(names[letter], group * length, offset, length))
                offset += length
        return ParameterMap(parameter, (offset, *tail), 0, tuple(blocks), tensors)

    def _known(self, parameter: str, key: str, table: dict[str, _T]) -> _T:
        if key not in table:
            raise CheckpointError(f"{parameter} has no name in the {self.names.title} format")
        return table[key]


# ---- the complete model

_VISION_OUTSIDE = ("class_embedding", "patch_embedding.weight", "patch_embedding.bias", "position_embedding")
_VISION_LAYER = (
    *(f"input_layernorm.{x}" for x in ("weight", "bias")),
    *(f"self_attention.linear_qkv.{x}" for x in ("weight", "bias")),
    *(f"self_attention.linear_proj.{x}" for x in ("weight", "bias")),
    "self_attn_bda.scale",
    *(f"pre_mlp_layernorm.{x}" for x in ("weight", "bias")),
    *(f"mlp.linear_fc1.{x}" for x in ("weight", "bias")),
    *(f"mlp.linear_fc2.{x}" for x in ("weight", "bias")),
    "mlp_bda.scale",
)
_PROJECTOR = ("layernorm.weight", "layernorm.bias", "linear_fc1.weight", "linear_fc2.weight")
_LANGUAGE_LAYER = (
    "input_layernorm.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.linear_proj.weight",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)


def parameter_names(config: ModelConfig, parts: Iterable[str] = PARTS) -> list[str]:
    """Names of all parameters, with the layers' numbers in the whole model."""
    parts, names = set(parts), []
    if "vision" in parts:
        names += [f"vision_model.{x}" for x in _VISION_OUTSIDE]
        for layer in range(config.vision.num_layers):
            names += [f"vision_model.decoder.layers.{layer}.{x}" for x in _VISION_LAYER]
    if "projector" in parts:
        names += [f"vision_projection.{x}" for x in _PROJECTOR]
    if "language" in parts:
        names.append("language_model.embedding.word_embeddings.weight")
        for layer in range(config.language.num_layers):
            names += [f"language_model.decoder.layers.{layer}.{x}" for x in _LANGUAGE_LAYER]
        names.append("language_model.decoder.final_layernorm.weight")
        if not config.language.tie_word_embeddings:
            names.append("language_model.output_layer.weight")
    return names


def hf_tensors(
    config: ModelConfig, names: FormatNames, mapper: Mapper | None = None, parts: Iterable[str] = PARTS
) -> list[HFTensor]:
    """All tensors of a folder of this model in one format, in the model's order."""
    mapper = mapper or Mapper(config, names)
    found: dict[str, HFTensor] = {}
    for parameter in parameter_names(config, parts):
        found.update(mapper.map(parameter).tensors)
    if "projector" in set(parts) and names.projector is not None and names.projector.padded:
        for module in (names.projector.fc1, names.projector.fc2):
            bias = f"{names.projector.prefix}{module}.bias"
            found[bias] = HFTensor(bias, (config.language.hidden_size,), "projector", padded=True)
    return list(found.values())
