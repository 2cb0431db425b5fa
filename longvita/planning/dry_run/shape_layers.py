"""Layers by shape: they allocate, keep for the backward pass and send what the accelerators' fused kernels do.

RMSNorm keeps its input and one fp32 statistic a row. Attention keeps its inputs and its output in the precision of
training, and for each row and head the statistics of longvita.platforms.layer_memory. Its ring sends the rows of
longvita.attention.ring.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from longvita.attention.ring import RingPlan
from longvita.attention.seq_params import SplitSeqParams
from longvita.attention.ulysses import ulysses_attention


class ShapeRMSNorm(nn.Module):
    """A fused RMSNorm over the last dimension of [..., h]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape and dtype of x."""
        return _ShapeRMSNormFunction.apply(x, self.weight)


class _ShapeRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class ShapeAttention(MegatronModule):
    """Fused core attention with megatron-core's interface, for tiles, packed documents, and split sequences."""

    statistics_bytes = 4
    """Bytes that it keeps for each row and head in addition to inputs and output (longvita.platforms.layer_memory)."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Packed: q [t, heads, d] to [t, 1, heads * d]; else q [s, b, heads, d] to [s, b, heads * d]."""
        if isinstance(packed_seq_params, SplitSeqParams):
            params = packed_seq_params

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return _ShapeRingAttentionFunction.apply(q, k, v, self.statistics_bytes, params.plan, params.ring)

            one = params.ulysses.size() == 1
            out = attend(query, key, value) if one else ulysses_attention(query, key, value, attend, params.ulysses)
        else:
            out = _ShapeAttentionFunction.apply(query, key, value, self.statistics_bytes)
        if packed_seq_params is None:
            return out.reshape(out.shape[0], out.shape[1], -1)
        return out.reshape(out.shape[0], 1, -1)


def _keep(ctx: Any, query: Tensor, key: Tensor, value: Tensor, statistics_bytes: int) -> Tensor:
    """Save what the backward pass needs; return the output."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    statistics = query.new_empty((*query.shape[:-1], statistics_bytes), dtype=torch.uint8)
    ctx.save_for_backward(query, key, value, out, statistics)
    return out


class _ShapeAttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, statistics_bytes: int) -> Tensor:
        return _keep(ctx, query, key, value, statistics_bytes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(torch.empty_like(saved) for saved in ctx.saved_tensors[:3]), None


class _ShapeRingAttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        statistics_bytes: int,
        plan: RingPlan,
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.plan, ctx.group = plan, group
        _send_round(key, plan, group, home=False)
        return _keep(ctx, query, key, value, statistics_bytes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        _send_round(key, ctx.plan, ctx.group, home=False)
        _send_round(key, ctx.plan, ctx.group, home=True)
        return *(torch.empty_like(saved) for saved in (query, key, value)), None, None, None


def _send_round(key: Tensor, plan: RingPlan, group: dist.ProcessGroup, home: bool) -> None:
    """Send keys and values to the ranks that need them, or with `home` their gradients back; at any time, one block is
    sent and one received.
    """
    for step in plan.steps:
        sent = key.new_empty((2, sum(end - start for start, end in step.send), *key.shape[1:]))
        received = key.new_empty((2, step.receive, *key.shape[1:]))
        if home:
            transfers = (received, dist.isend, step.source), (sent, dist.irecv, step.destination)
        else:
            transfers = (sent, dist.isend, step.destination), (received, dist.irecv, step.source)
        operations = [dist.P2POp(call, x, group=group, group_peer=to) for x, call, to in transfers if x.numel()]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
