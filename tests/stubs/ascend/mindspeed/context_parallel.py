"""MindSpeed's context parallelism: its groups, its ring over packed documents, its shard of rotary angles."""

from __future__ import annotations

import itertools
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
import torch_npu
from megatron.core import parallel_state
from torch import Tensor

from mindspeed.args_utils import get_full_args

_RANKS_OF_WINDOW: list[int] | None = None
"""Ranks of the ring's inner window, in addition to Megatron's groups."""


def initialize_model_parallel_cp_wrapper(initialize_model_parallel: Any) -> Any:
    """Create the ring's groups after Megatron's, from MindSpeed's arguments, not from those of the call."""

    @wraps(initialize_model_parallel)
    def wrapper(tensor_model_parallel_size: int = 1, **kwargs: Any) -> None:
        global _RANKS_OF_WINDOW
        initialize_model_parallel(tensor_model_parallel_size=tensor_model_parallel_size, **kwargs)
        args = get_full_args()
        if kwargs.get("context_parallel_size", 1) == 1 or args.context_parallel_algo != "megatron_cp_algo":
            return
        _RANKS_OF_WINDOW = [dist.get_rank()]

    return wrapper


def destroy_model_parallel_cp_wrapper(destroy_model_parallel: Any) -> Any:
    """Remove the groups."""

    @wraps(destroy_model_parallel)
    def wrapper() -> None:
        global _RANKS_OF_WINDOW
        destroy_model_parallel()
        _RANKS_OF_WINDOW = None

    return wrapper


def get_pos_emb_on_this_cp_rank(pos_emb: Tensor, seq_dim: int, cp_group: Any = None) -> Tensor:
    """The zigzag shard of the angles of one sequence."""
    args = get_full_args()
    if args.reset_position_ids and args.attention_mask_type == "causal":
        return pos_emb
    size = parallel_state.get_context_parallel_world_size()
    rank = parallel_state.get_context_parallel_rank()
    chunks = pos_emb.chunk(2 * size, dim=seq_dim)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim=seq_dim)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, packed_seq_params: Any) -> Tensor:
    """Attention of this rank's rows [t, heads, d]. Its bounds are cu_seqlens_q_padded of the full sequence."""
    if _RANKS_OF_WINDOW is None:
        raise TypeError("object of type 'NoneType' has no len()")  # get_ring_ranks_for_intra_window() is None
    group = parallel_state.get_context_parallel_group()
    size, rank = group.size(), group.rank()
    bounds = packed_seq_params.cu_seqlens_q_padded.tolist()
    places = [_places(bounds, size, one) for one in range(size)]
    if len(places[rank]) != len(q):
        raise RuntimeError(f"cu_seqlens_q_padded / {size} ends at {len(places[rank])}, the rank has {len(q)} rows")
    order = torch.argsort(torch.cat(places))
    keys, values = (_Gather.apply(x, group)[order] for x in (k, v))
    hidden = torch.ones(len(q), bounds[-1], dtype=torch.bool)
    for start, end in itertools.pairwise(bounds):
        inside = (places[rank] >= start) & (places[rank] < end)
        columns = torch.arange(start, end)
        seen = columns[None] <= places[rank][inside][:, None] if causal else torch.ones(1, end - start).bool()
        hidden[inside.nonzero(), columns] = ~seen
    out = torch_npu.npu_fusion_attention(
        q[None].transpose(1, 2),
        keys[None].transpose(1, 2),
        values[None].transpose(1, 2),
        q.shape[1],
        "BNSD",
        atten_mask=hidden,
        scale=scale,
        sparse_mode=1,
    )[0]
    return out[0].transpose(0, 1)


def _places(bounds: list[int], size: int, rank: int) -> Tensor:
    """Place in the full sequence of each row of a rank: chunks r and 2 CP - 1 - r of each document."""
    rows = []
    for start, end in itertools.pairwise(bounds):
        chunk, left = divmod(end - start, 2 * size)
        if left:
            raise RuntimeError(f"a document of {end - start} tokens is no multiple of 2 x {size}")
        for number in (rank, 2 * size - 1 - rank):
            rows.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
    return torch.cat(rows)


class _Gather(torch.autograd.Function):
    """Rows of all ranks, and the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, parts = group, [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(ctx.group.size())[ctx.group.rank()].contiguous(), None
