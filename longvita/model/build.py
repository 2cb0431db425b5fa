"""Builds the model chunks of this process and draws their weights."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longvita.config.schema import Config
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform

EMBEDDING_WEIGHT = "language_model.embedding.word_embeddings.weight"
OUTPUT_WEIGHT = "language_model.output_layer.weight"
RESIDUAL_OUTPUTS = ("linear_proj.weight", "mlp.linear_fc2.weight")


def build_model(config: Config, groups: ParallelGroups, platform: Platform, fresh: bool = True) -> list[LongVITA]:
    """Build the chunks of this pipeline stage: one, or `layout.virtual_pipeline` of them.

    Parameters are on the platform's device, in the precision of training; frozen parts need no gradient. `fresh` draws
    the weights from config.seed, the same at every layout. Without it they are uninitialised, for a checkpoint to fill.
    """
    platform.seed(config.seed)
    chunks = config.layout.virtual_pipeline
    models = []
    for chunk in range(chunks):
        first, last = groups.is_first_stage and chunk == 0, groups.is_last_stage and chunk == chunks - 1
        model = LongVITA(config, groups, platform, first, last, chunk if chunks > 1 else None).to(platform.device)
        if fresh:
            initialise(model, config, groups)
        models.append(model)
    return models


def initialise(model: torch.nn.Module, config: Config, groups: ParallelGroups) -> None:
    """Draw every parameter of a model chunk: normal weights, zero biases, unit norms, layer scales as configured.

    Each parameter is drawn complete, by a generator seeded with the run's seed and the parameter's global name, and a
    rank keeps its slice: a run starts from the same weights at every layout.
    """
    with torch.no_grad():
        for name, parameter in global_names(model):
            if config.model.language.tie_word_embeddings and name == OUTPUT_WEIGHT:
                # The last pipeline stage's copy of the shared weight equals the first stage's.
                name = EMBEDDING_WEIGHT
            if name.endswith(".scale"):
                parameter.fill_(config.model.vision.layer_scale_init)
            elif name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                _draw(parameter, name, _std(name, config), config.seed, groups)


def global_names(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters of a chunk (wrapped by DDP or not) under names with the layer numbers of the whole model."""
    offsets = {
        name.removesuffix(".0"): module.layer_number - 1
        for name, module in model.named_modules()
        if name.endswith("layers.0")
    }
    for name, parameter in model.named_parameters():
        match = re.match(r"(.*layers)\.(\d+)\.(.*)", name)
        if match is not None:
            prefix, local, rest = match.groups()
            name = f"{prefix}.{int(local) + offsets[prefix]}.{rest}"
        yield re.sub(r"^(module\.)*", "", name), parameter


def _std(name: str, config: Config) -> float:
    model = config.model
    if name.endswith("word_embeddings.weight"):
        return model.embedding_init_method_std or model.init_method_std
    if name.endswith(RESIDUAL_OUTPUTS) and not name.startswith("vision_projection"):
        # Two residual branches per layer: keeps the variance of the residual stream near one (GPT-2, section 2.3).
        layers = model.vision.num_layers if name.startswith("vision_model") else model.language.num_layers
        return model.init_method_std / math.sqrt(2 * layers)
    return model.init_method_std


def _draw(parameter: Any, name: str, std: float, seed: int, groups: ParallelGroups) -> None:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    if not getattr(parameter, "tensor_model_parallel", False):
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        return
    dimension = parameter.partition_dim
    shape = list(parameter.shape)
    shape[dimension] *= groups.tp_size
    whole = torch.empty(shape).normal_(0.0, std, generator=generator)
    parameter.copy_(tp_slice(whole, dimension, groups.tp_rank, groups.tp_size, name.endswith("mlp.linear_fc1.weight")))


def tp_slice(whole: Tensor, dimension: int, rank: int, size: int, halves: bool) -> Tensor:
    """Return a TP rank's slice of a complete tensor. For SwiGLU's first linear (`halves`) it is the rank's gate rows,
    then its up rows.
    """
    if not halves:
        return whole.chunk(size, dim=dimension)[rank]
    gate, up = whole.chunk(2, dim=dimension)
    return torch.cat([gate.chunk(size, dim=dimension)[rank], up.chunk(size, dim=dimension)[rank]], dim=dimension)
