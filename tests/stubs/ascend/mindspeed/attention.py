"""MindSpeed's core attention: the fused operator without context parallelism, its ring with it."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
import torch_npu
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from mindspeed.context_parallel import ring_attention

SIDE = 2048


def dot_product_attention_init_wrapper(fn: Any) -> Any:
    """Accept the arguments of every core attention."""

    @wraps(fn)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        fn(self, *args, **kwargs)
        self.pse = None

    return wrapper


def dot_product_attention_forward_wrapper(fn: Any) -> Any:
    """The fused operator instead of Megatron's matrix products and softmax."""

    @wraps(fn)
    def wrapper(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        mask, sparse_mode = _masking(self, attention_mask, attn_mask_type)
        return _fused(self, query, key, value, mask, sparse_mode, packed_seq_params)

    return wrapper


def te_dot_product_attention() -> type:
    """The class that replaces Transformer Engine's without context parallelism: masked by the argument's type."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class TEDotProductAttention(DotProductAttention):
        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            attn_mask_type: AttnMaskType | None = None,
            attention_bias: Tensor | None = None,
            packed_seq_params: Any = None,
        ) -> Tensor:
            # The layer's type decides whether there is a mask, the argument's type how it is read.
            mask, _ = _masking(self, attention_mask, attn_mask_type)
            sparse_mode = {"causal": 2, "general": 1}.get(self.config.attention_mask_type, 0)
            return _fused(self, query, key, value, mask, sparse_mode, packed_seq_params)

    return TEDotProductAttention


def cp_dot_product_attention() -> type:
    """The class that replaces both core attentions under context parallelism."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class MindSpeedCPDotProductAttention(DotProductAttention):
        def __init__(
            self,
            config: Any,
            layer_number: int,
            attn_mask_type: AttnMaskType,
            attention_type: str,
            attention_dropout: float | None = None,
            softmax_scale: float | None = None,
            cp_comm_type: str | None = None,
            **kwargs: Any,
        ) -> None:
            size, config.context_parallel_size = config.context_parallel_size, 1
            super().__init__(
                config, layer_number, attn_mask_type, attention_type, attention_dropout, softmax_scale, cp_comm_type
            )
            config.context_parallel_size = size

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            attn_mask_type: AttnMaskType | None = None,
            attention_bias: Tensor | None = None,
            packed_seq_params: Any = None,
        ) -> Tensor:
            mask, sparse_mode = _masking(self, attention_mask, attn_mask_type)
            if self.config.context_parallel_size == 1:
                return _fused(self, query, key, value, mask, sparse_mode, packed_seq_params)
            if self.config.context_parallel_algo != "megatron_cp_algo" or packed_seq_params is None:
                raise NotImplementedError("the stub has the ring over packed documents alone")
            # By the argument; the layer's mask type is ignored.
            causal = self.config.attention_mask_type == "causal"
            return ring_attention(query, key, value, self.softmax_scale, causal, packed_seq_params)

    return MindSpeedCPDotProductAttention


def _masking(module: Any, mask: Tensor | None, mask_type: AttnMaskType | None) -> tuple[Tensor | None, int]:
    """Create a mask only for AttnMaskType.causal; other types run without a mask."""
    if mask is None and module.attn_mask_type == AttnMaskType.causal:
        mask = torch.ones(SIDE, SIDE, dtype=torch.bool).triu(1)
        if module.config.attention_mask_type == "causal":
            module.config.sparse_mode = 2
        if module.config.reset_attention_mask:
            raise NotImplementedError("reset_attention_mask is not modelled here")
    return mask, 0 if mask_type == AttnMaskType.no_mask else module.config.sparse_mode


def _fused(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sparse_mode: int, packed: Any
) -> Tensor:
    how: dict[str, Any] = {"atten_mask": mask, "scale": module.softmax_scale, "sparse_mode": sparse_mode}
    how |= {"pre_tockens": module.config.pre_tockens, "next_tockens": module.config.next_tockens, "inner_precise": 0}
    heads = query.shape[-2]
    if packed is None:
        query, key, value = (x.flatten(2) for x in (query, key, value))
        return torch_npu.npu_fusion_attention(query, key, value, heads, "SBH", **how)[0]
    # The bounds without padding; the padded ones are not read here.
    how["actual_seq_qlen"] = packed.cu_seqlens_q.tolist()
    how["actual_seq_kvlen"] = packed.cu_seqlens_kv.tolist()
    return torch_npu.npu_fusion_attention(query, key, value, heads, "TND", **how)[0]
