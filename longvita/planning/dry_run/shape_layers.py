"""Layers by shape: they allocate, keep for the backward pass and send what the accelerators' fused kernels do.

RMSNorm keeps its input and one fp32 statistic a row. Attention keeps its inputs and its output in the precision of
training, and for each row and head the statistics of longvita.platforms.layer_memory. Its ring sends the rows of
longvita.attention.ring. MindSpeed's row-parallel linear layers keep their input for a frozen weight too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

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


class ShapeRowLinear(RowParallelLinear):
    """A row-parallel linear layer that keeps its input for a frozen weight too, as MindSpeed's does.

    Megatron's own keeps the input of a trained weight only.
    """

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if weight.requires_grad:
            return super()._forward_impl(input, weight, *args, **kwargs)
        return _FrozenLinearFunction.apply(input, weight)


class _FrozenLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return torch.matmul(input, weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].matmul(ctx.saved_tensors[1]), None


class ShapeAttention(MegatronModule):
    """Fused core attention with megatron-core's interface, for tiles, packed documents, and split sequences."""

    statistics_bytes = 4
    """Bytes that it keeps for each row and head in addition to inputs and output (longvita.platforms.layer_memory)."""

    def __init__(self, config: TransformerConfig, *unused: Any, **unused_too: Any) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *unused: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **unused_too: Any,
    ) -> Tensor:
        """Packed: q [t, heads, d] to [t, 1, heads * d]; else q [s, b, heads, d] to [s, b, heads * d]."""
        split = packed_seq_params if isinstance(packed_seq_params, SplitSeqParams) else None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _ShapeAttentionFunction.apply(q, k, v, self.statistics_bytes, split)

        if split is None or split.ulysses.size() == 1:
            out = attend(query, key, value)
        else:
            out = ulysses_attention(query, key, value, attend, split.ulysses)
        return out.reshape(out.shape[0], out.shape[1] if packed_seq_params is None else 1, -1)


class _ShapeAttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, statistics_bytes: int, split: SplitSeqParams | None
    ) -> Tensor:
        ctx.split = split
        if split is not None:
            _send_round(key, split, home=False)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        statistics = query.new_empty((*query.shape[:-1], statistics_bytes), dtype=torch.uint8)
        ctx.save_for_backward(query, key, value, out, statistics)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors[:3]
        if ctx.split is not None:
            _send_round(inputs[1], ctx.split, home=False)
            _send_round(inputs[1], ctx.split, home=True)
        return *(torch.empty_like(x) for x in inputs), None, None


def _send_round(key: Tensor, split: SplitSeqParams, home: bool) -> None:
    """Send keys and values to the ranks that need them, or with `home` their gradients back; at any time, one block is
    sent and one received.
    """
    for step in split.plan.steps:
        sent = key.new_empty((2, sum(end - start for start, end in step.send), *key.shape[1:]))
        received = key.new_empty((2, step.receive, *key.shape[1:]))
        if home:
            transfers = (received, dist.isend, step.source), (sent, dist.irecv, step.destination)
        else:
            transfers = (sent, dist.isend, step.destination), (received, dist.irecv, step.source)
        operations = [dist.P2POp(call, x, group=split.ring, group_peer=to) for x, call, to in transfers if x.numel()]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
