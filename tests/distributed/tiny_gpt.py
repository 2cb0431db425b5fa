"""A tiny megatron-core GPT on a platform's specs, with the same weights at every layout."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from longvita.platforms.base import Platform

VOCABULARY, LAYERS, HIDDEN, HEADS, GROUPS, FFN = 48, 4, 32, 4, 2, 64
BOUNDS = [0, 5, 6, 13, 20]
TOKENS = BOUNDS[-1]


def build(
    platform: Platform, tp: int = 1, pp: int = 1, vpp: int = 1, sp: bool = False, **fields: Any
) -> tuple[list, Any]:
    """Model chunks in DDP and a distributed optimizer, on process groups made here."""
    parallel_state.initialize_model_parallel(tp, pp, vpp if vpp > 1 else None)
    platform.seed(1)
    values = {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_attention_heads": HEADS,
        "num_query_groups": GROUPS,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp if vpp > 1 else None,
        "sequence_parallel": sp,
        "pipeline_dtype": torch.float32,
        "finalize_model_grads_func": finalize_model_grads,
        **platform.transformer_config_overrides(virtual_pipeline=vpp),
        **fields,
    }
    config = TransformerConfig(**values)
    chunks = [_chunk(platform, config, index, vpp) for index in range(vpp)]
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False, bucket_size=None)
    models = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
    settings = OptimizerConfig(optimizer="adam", lr=1e-2, use_distributed_optimizer=True, bf16=config.bf16)
    return models, get_megatron_optimizer(settings, models)


def _chunk(platform: Platform, config: TransformerConfig, index: int, vpp: int) -> GPTModel:
    vp_stage = index if vpp > 1 else None
    spec = TransformerBlockSubmodules(
        layer_specs=[platform.language_layer_spec()] * get_num_layers_to_build(config, vp_stage),
        layer_norm=platform.norm(),
    )
    model = GPTModel(
        config,
        spec,
        vocab_size=VOCABULARY,
        max_sequence_length=64,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        vp_stage=vp_stage,
    )
    _fill(model)
    return model


def _fill(model: GPTModel) -> None:
    """Weights that depend on a parameter's name and global layer number alone."""
    tp, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue
        if name.startswith("decoder.layers."):
            _, _, local, rest = name.split(".", 3)
            name = f"{model.decoder.layers[int(local)].layer_number}.{rest}"
        dim = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        shape = [size * tp if axis == dim else size for axis, size in enumerate(parameter.shape)]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        full = torch.randn(shape, generator=generator) * 0.1
        halves = full.chunk(2) if "linear_fc1" in name else (full,)
        parts = [half if dim is None else half.chunk(tp, dim)[rank] for half in halves]
        parameter.data.copy_(torch.cat(parts))


def batch(step: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [1, t]."""
    generator = torch.Generator().manual_seed(1000 * step + micro_batch)
    tokens = torch.randint(0, VOCABULARY, (1, TOKENS + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def train_step(models: list, optimizer: Any, step: int, micro_batches: int = 4, offset: int = 0) -> float | None:
    """One optimizer step; the mean loss of this rank's micro batches on the last stage, None elsewhere."""
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    longest = max(end - start for start, end in itertools.pairwise(BOUNDS))
    packed = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
    losses: list[torch.Tensor] = []

    def loss_of(output: torch.Tensor) -> tuple[torch.Tensor, dict]:
        losses.append(output.detach().mean().clone())
        return output.mean(), {}

    def forward(iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
        tokens, labels = next(iterator)
        positions = torch.arange(TOKENS)[None]
        return model(tokens, positions, None, labels=labels, packed_seq_params=packed), loss_of

    for model in models:
        model.zero_grad_buffer()
    optimizer.zero_grad()
    config = models[0].config
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[(batch(step, offset + i) for i in range(micro_batches)) for _ in models],
        model=models,
        num_microbatches=micro_batches,
        seq_length=TOKENS,
        micro_batch_size=1,
        forward_only=False,
    )
    assert config.finalize_model_grads_func is finalize_model_grads
    optimizer.step()
    return torch.stack(losses).mean().item() if losses else None
