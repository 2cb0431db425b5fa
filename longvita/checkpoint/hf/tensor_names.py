"""Names of the tensors in each known Hugging Face format, and detection of a folder's format.

| format | written by | parts |
| --- | --- | --- |
| long_vita | the published Long-VITA (`LongVITAForCausalLM`) | all |
| internvl | transformers' `InternVLForConditionalGeneration`, in the form it saves or in that of its modules | all |
| Qwen2.5 | `Qwen2ForCausalLM` | language |
| InternViT | `InternVisionModel`, alone or inside an InternVL 2 folder | vision |
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class VisionNames:
    """Names inside a vision encoder."""

    prefix: str
    layer: str
    qkv: tuple[tuple[str, int], tuple[str, int], tuple[str, int]]
    """The module of q, k and v, and the third of its rows."""
    modules: dict[str, str]
    """The others, by our names."""


@dataclass(frozen=True)
class ProjectorNames:
    """Names inside a projector; a `padded` one has the language model's width inside, and biases."""

    prefix: str
    norm: str
    fc1: str
    fc2: str
    padded: bool


@dataclass(frozen=True)
class LanguageNames:
    """Names of a Qwen2 decoder: `prefix` before `layers.N` and `norm`."""

    prefix: str
    embedding: str
    head: str


@dataclass(frozen=True)
class FormatNames:
    """One format; a part that it lacks is None."""

    title: str
    vision: VisionNames | None = None
    projector: ProjectorNames | None = None
    language: LanguageNames | None = None


def needed(part: _T | None) -> _T:
    """The names of a part. Raises LookupError when the format has none."""
    if part is None:
        raise LookupError("the format lacks this part of the model")
    return part


def _internvit(prefix: str) -> VisionNames:
    modules = {
        "class_embedding": "embeddings.class_embedding",
        "patch_embedding": "embeddings.patch_embedding",
        "position_embedding": "embeddings.position_embedding",
        "self_attention.linear_proj": "attn.proj",
        "mlp.linear_fc1": "mlp.fc1",
        "mlp.linear_fc2": "mlp.fc2",
        "input_layernorm": "norm1",
        "pre_mlp_layernorm": "norm2",
        "self_attn_bda.scale": "ls1",
        "mlp_bda.scale": "ls2",
    }
    return VisionNames(prefix, "encoder.layers.{}.", (("attn.qkv", 0), ("attn.qkv", 1), ("attn.qkv", 2)), modules)


def _internvl_vision(prefix: str) -> VisionNames:
    qkv = (("attention.q_proj", 0), ("attention.k_proj", 0), ("attention.v_proj", 0))
    modules = {
        "class_embedding": "embeddings.cls_token",
        "patch_embedding": "embeddings.patch_embeddings.projection",
        "position_embedding": "embeddings.position_embeddings",
        "self_attention.linear_proj": "attention.projection_layer",
        "mlp.linear_fc1": "mlp.fc1",
        "mlp.linear_fc2": "mlp.fc2",
        "input_layernorm": "layernorm_before",
        "pre_mlp_layernorm": "layernorm_after",
        "self_attn_bda.scale": "lambda_1",
        "mlp_bda.scale": "lambda_2",
    }
    return VisionNames(prefix, "encoder.layer.{}.", qkv, modules)


_LONG_VITA_PROJECTOR = ProjectorNames("model.vision_projection.", "pre_proj_layernorm", "mlp.0", "mlp.2", padded=False)
_QWEN2 = LanguageNames("model.", "model.embed_tokens.weight", "lm_head.weight")


def _internvl_projector(prefix: str) -> ProjectorNames:
    return ProjectorNames(prefix, "layer_norm", "linear_1", "linear_2", padded=True)


LONG_VITA = FormatNames("long_vita", _internvit("model.vision_model."), _LONG_VITA_PROJECTOR, _QWEN2)
INTERNVL = FormatNames(
    "internvl",
    _internvl_vision("vision_tower."),
    _internvl_projector("multi_modal_projector."),
    LanguageNames("language_model.model.", "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
)

_VISION = (
    LONG_VITA.vision,
    INTERNVL.vision,
    _internvl_vision("model.vision_tower."),
    _internvit("vision_model."),
    _internvit(""),
)
_PROJECTOR = (LONG_VITA.projector, INTERNVL.projector, _internvl_projector("model.multi_modal_projector."))
_LANGUAGE = (
    INTERNVL.language,
    LanguageNames("model.language_model.", "model.language_model.embed_tokens.weight", "lm_head.weight"),
    _QWEN2,
)


def detect_names(tensors: Collection[str], title: str) -> FormatNames:
    """The names of a folder with these tensors; a part without any tensor is None.

    One tensor is enough for a part, so that the rest of it can be reported as missing.
    """
    known = set(tensors)
    vision = next((x for x in _VISION if x and x.prefix + x.modules["class_embedding"] in known), None) or next(
        (x for x in _VISION if x and any(t.startswith(x.prefix + x.layer.split("{")[0]) for t in known)), None
    )
    projector = next((x for x in _PROJECTOR if x and any(t.startswith(x.prefix) for t in known)), None)
    language = next((x for x in _LANGUAGE if x and any(t.startswith(x.prefix + "layers.") for t in known)), None)
    return FormatNames(title, vision, projector, language)


def part_of(tensor: str, names: FormatNames) -> str | None:
    """The part of a tensor by its prefix; None when it has no part's prefix."""
    if names.projector and tensor.startswith(names.projector.prefix):
        return "projector"
    vision = names.vision
    inside = (vision.prefix or "embeddings.", vision.prefix + "encoder.") if vision else ()
    if tensor.startswith(inside):
        return "vision"
    # After the vision encoder: the published names of both begin with "model.".
    language = names.language
    if language and (tensor in (language.embedding, language.head) or tensor.startswith(language.prefix)):
        return "language"
    return None
