"""Transformer Engine's layers in megatron-core's wrappers, and its attention over split and packed sequences.

Written from the source of megatron-core 0.16.1 (megatron/core/extensions/transformer_engine.py,
models/gpt/gpt_layer_specs.py) and Transformer Engine 2.20.2
(pytorch/attention/dot_product_attention/context_parallel.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch.distributed as dist
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from typing_extensions import override

from longvita.attention.core import attend_split_or_cached
from longvita.attention.kernel import AttentionKernel
from longvita.attention.seq_params import LibrarySeqParams
from longvita.parallel.groups import ParallelGroups


def language_layer_spec(kernel: AttentionKernel, groups: ParallelGroups | None, gathers: bool) -> ModuleSpec:
    """megatron-core's own Transformer Engine spec of a decoder layer: norms are fused with the next linear layer.

    kernel: for sequences that Transformer Engine does not support (see EngineAttention). gathers: see method_of.
    """
    own = {"kernel": kernel, "groups": groups, "gathers": gathers}
    spec = get_gpt_layer_with_transformer_engine_spec()
    layer: Any = spec.submodules
    layer.self_attention.submodules.core_attention = ModuleSpec(module=EngineAttention, params=own)
    return spec


class EngineAttention(TEDotProductAttention):
    """TEDotProductAttention with context parallelism, inside layers without it.

    Those layers see this rank's rows as one sequence and a group of one rank. Attention gets the full CP group and the
    document bounds of the full sequence (LibrarySeqParams). `kernel` computes sequences with a KV cache, or split by
    our own placement.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        kernel: AttentionKernel,
        groups: ParallelGroups | None,
        gathers: bool,
        **how: Any,
    ) -> None:
        method = cp_comm_type
        if groups is not None and pg_collection is not None and groups.cp_size > 1:
            method = method_of(config, groups, gathers)
            config = copy.copy(config)
            config.context_parallel_size = groups.cp_size
            pg_collection = copy.copy(pg_collection)
            pg_collection.cp = groups.cp
        super().__init__(
            config,
            layer_number,
            softmax_scale=softmax_scale,
            # For a2a+p2p megatron-core would use its global groups; ours are set below.
            cp_comm_type="p2p" if method == "a2a+p2p" else method,
            pg_collection=pg_collection,
            **how,
        )
        if groups is not None and groups.cp_size > 1 and method == "a2a+p2p":
            both: Any = [groups.cp_ulysses, groups.cp_ring]
            ranks = dist.get_process_group_ranks(groups.cp)
            self.set_context_parallel_group(both, ranks, TEDotProductAttention.cp_stream, method)
        self.number, self.kernel = layer_number, kernel
        self.scale = softmax_scale or config.kv_channels**-0.5

    @override
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedSeqParams | None = None,
        **how: Any,
    ) -> Tensor:
        if isinstance(packed_seq_params, LibrarySeqParams):
            packed_seq_params = packed_seq_params.attention
        elif packed_seq_params is not None:
            out = attend_split_or_cached(packed_seq_params, self.number, query, key, value, self.scale, self.kernel)
            if out is not None:
                return out.reshape(len(out), 1, -1)
        out = super().forward(query, key, value, attention_mask, packed_seq_params=packed_seq_params, **how)
        return out.reshape(len(out), 1, -1) if packed_seq_params is not None else out


def method_of(config: TransformerConfig, groups: ParallelGroups, gathers: bool) -> str:
    """The communication of context parallelism (`cp_comm_type`), from the heads and groups of a TP rank.

    Ulysses alone is a2a, a ring of Ulysses groups a2a+p2p; layout.ulysses selects one, or else the divisors of heads
    and groups. Without Ulysses keys and values are communicated: by one all-gather if those of all ranks are no larger
    than a rank's own queries (2 x CP x groups <= heads), else by a ring, which overlaps with computation.

    gathers: whether the kernels support separate offsets and lengths for keys (cuDNN's, FlashAttention 3 and 4 do).
    FlashAttention 2, on older GPUs, would silently read gathered keys of all documents but the first from the wrong
    rows (AttnFuncWithCPAndKVAllGather).
    """
    tp = config.tensor_model_parallel_size
    heads, kv_groups = config.num_attention_heads // tp, config.num_query_groups // tp
    if groups.cp_ulysses.size() > 1:
        return "a2a" if groups.cp_ring.size() == 1 else "a2a+p2p"
    return "all_gather" if gathers and 2 * groups.cp_size * kv_groups <= heads else "p2p"
