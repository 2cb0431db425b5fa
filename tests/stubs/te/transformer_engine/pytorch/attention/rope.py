"""transformer_engine/pytorch/attention/rope.py"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ...refuse import only


def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    start_positions: Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> Tensor:
    only("apply_rotary_pos_emb", start_positions=start_positions, interleaved=interleaved, ranks=cp_size != 1)
    if tensor_format != "thd" or cu_seqlens is None:
        raise NotImplementedError("the stub turns packed batches alone")
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(cu_seqlens.tolist())])
    angles = freqs[positions, 0].to(t.dtype)
    first, second = t.chunk(2, dim=-1)
    return t * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()
