"""Floating point operations of a training step, from the contents of its documents.

Only the work that the model requires is counted: no padding, in attention only the pairs of positions that see each
other, recomputed activations once. Frozen parts count the operations that their backward pass really has. The product
of an [m, k] and a [k, n] matrix is 2 m k n operations; norms, activations and rotary embeddings (below 1%) are left
out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longvita.config.schema import ModelConfig


@dataclass
class Workload:
    """Contents of some documents that determine the model's work; workloads add up."""

    tokens: int = 0
    """Positions of the language model that hold a document."""
    attention_pairs: int = 0
    """Pairs (query, key) that causal attention computes: L (L + 1) / 2 for a document of L tokens."""
    loss_tokens: int = 0
    """Positions whose logits are computed."""
    tiles: int = 0
    """Tiles that the vision encoder encodes."""


def training_flops(model: ModelConfig, work: Workload, trainable: Iterable[str]) -> int:
    """Return the operations of a forward and a backward pass; `trainable`: of "vision", "projector", "language".

    The backward pass of a linear layer has one product for its weight, if that is trained, and one for its input, if
    anything before it is trained. That of attention has twice the products of its forward pass, if anything before it
    is trained.
    """
    parts = set(trainable)
    vision, projector, language = ("vision" in parts), ("projector" in parts), ("language" in parts)
    factors = {
        "patches": 1 + vision,
        "vision_linear": 1 + 2 * vision,
        "vision_attention": 1 + 2 * vision,
        # The projector starts with a norm, whose weights come before its first linear layer.
        "projector_first": 1 + projector + (projector or vision),
        "projector_second": 1 + projector + (projector or vision),
        "language_linear": 2 + language,
        "language_attention": 3,
        "head": 2 + language,
    }
    forward = {**vision_parts(model, work), **language_parts(model, work)}
    return sum(factors[name] * flops for name, flops in forward.items())


def vision_parts(model: ModelConfig, work: Workload) -> dict[str, int]:
    """Return the operations of a forward pass in the vision encoder and the projector, by part."""
    vision, projector = model.vision, model.projector
    hidden, positions = vision.hidden_size, vision.sequence_length
    patches = vision.patches_per_side**2
    layer_weights = 4 * hidden * hidden + 2 * hidden * vision.ffn_hidden_size
    per_tile = {
        "patches": 2 * patches * 3 * vision.patch_size**2 * hidden,
        "vision_linear": 2 * vision.num_layers * positions * layer_weights,
        "vision_attention": 4 * vision.num_layers * positions * positions * hidden,
        "projector_first": 2 * model.tokens_per_tile * hidden * projector.downsample**2 * projector.hidden_size,
        "projector_second": 2 * model.tokens_per_tile * projector.hidden_size * model.language.hidden_size,
    }
    return {name: work.tiles * flops for name, flops in per_tile.items()}


def language_parts(model: ModelConfig, work: Workload) -> dict[str, int]:
    """Return the operations of a forward pass in the language model: linear layers, attention, head."""
    language = model.language
    return {
        "language_linear": 2 * language.num_layers * work.tokens * language.layer_weights,
        "language_attention": 4 * language.num_layers * work.attention_pairs * language.query_width,
        "head": 2 * work.loss_tokens * language.hidden_size * language.vocab_size,
    }
