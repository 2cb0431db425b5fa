"""Attention of a chunk over itself and over keys and values that stay on the ranks which computed them.

The queries of a chunk are few beside what is cached, so they travel: every rank gets all of them, attends with them to
what it has cached, and sends each result with its logsumexp to the rank of the query, which merges them (pass-Q of
arXiv 2411.01783). Within the chunk keys and values travel, as in training.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.parallel.context_parallel.kernel import AttentionKernel, merge_into
from longvita.parallel.context_parallel.plan import plan_ring
from longvita.parallel.context_parallel.ring import ring_forward
from longvita.parallel.sequence_layout import SequenceLayout


@torch.no_grad()
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: tuple[Tensor, Tensor] | None,
    layout: SequenceLayout,
    scale: float,
    kernel: AttentionKernel,
    group: dist.ProcessGroup,
) -> Tensor:
    """Each query over all cached tokens and, causally, over the chunk: q [t, heads, d], k and v [t, groups, d] to q's.

    q, k, v: this rank's rows of the chunk, in the order of `layout`, one document. past: the keys and values
    [n, groups, d] that this rank has cached, n may be 0; None when no rank has cached any. Computed in fp32; rows of
    padding are zero. A collective over the group.
    """
    q32, k32, v32 = q.float(), k.float(), v.float()
    out, lse = ring_forward(q32, k32, v32, plan_ring(layout, group.rank()), scale, kernel, group)
    if past is not None:
        part, part_lse = _over_the_past(q32, (past[0].float(), past[1].float()), layout, scale, kernel, group)
        own = slice(layout.used[group.rank()])
        for other, other_lse in zip(part, part_lse, strict=True):
            merge_into(out[own], lse[own], other[own], other_lse[own])
    return out.to(q.dtype)


def _over_the_past(
    q: Tensor,
    past: tuple[Tensor, Tensor],
    layout: SequenceLayout,
    scale: float,
    kernel: AttentionKernel,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """Queries of this rank over what each rank has cached: out [ranks, rows, heads, d], lse [ranks, rows, heads]."""
    size, width = group.size(), max(layout.used)
    everyone = q.new_empty((size * width, *q.shape[1:]))
    dist.all_gather_into_tensor(everyone, q[:width].contiguous(), group=group)
    # Ranks with fewer rows have padding at their ends, which nobody attends with.
    rows = torch.cat([torch.arange(used) + rank * width for rank, used in enumerate(layout.used)]).to(q.device)
    # One tensor for both, so that they travel together; nothing cached is a logsumexp of minus infinity.
    results = q.new_zeros((size * width, q.shape[1], q.shape[2] + 1))
    results[..., -1] = -torch.inf
    if len(past[0]):
        out, lse = kernel.full_forward(everyone[rows], *past, scale)
        results[rows] = torch.cat((out, lse[..., None]), dim=-1)
    received = torch.empty_like(results)
    dist.all_to_all_single(received, results, group=group)
    received = received.unflatten(0, (size, width))
    return received[..., :-1], received[..., -1]
