"""Attention of a chunk over itself and over keys and values that stay on the ranks which computed them.

The queries of a chunk are few beside what is cached, so they travel: every rank gets all of them, attends with them to
what it has cached, and sends each result with its logsumexp to the rank of the query, which merges them (pass-Q of
arXiv 2411.01783). Within the chunk keys and values travel, as in training.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kernel import AttentionKernel, attend_blocks, merge_into
from longvita.attention.kv_cache import Blocks
from longvita.attention.ring import ring_forward
from longvita.attention.ring_plan import plan_ring
from longvita.parallel.sequence_layout import SequenceLayout


@torch.no_grad()
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Blocks | None,
    layout: SequenceLayout,
    scale: float,
    kernel: AttentionKernel,
    group: dist.ProcessGroup,
) -> Tensor:
    """Each query over all cached tokens and, causally, over the chunk: q [t, heads, d], k and v [t, groups, d] to q's.

    q, k, v: this rank's rows of the chunk, in the order of `layout`, one document. past: the keys and values
    [n, groups, d] that this rank has cached, in blocks, or in none; None when no rank has cached any. Parts are merged
    in fp32; rows of padding are zero. A collective over the group.
    """
    dtype = kernel.compute_dtype(q.dtype)
    queries = q.to(dtype)
    out, lse = ring_forward(queries, k.to(dtype), v.to(dtype), plan_ring(layout, group.rank()), scale, kernel, group)
    if past is not None:
        own = slice(layout.used[group.rank()])
        for part in _over_the_past(queries, past, layout, scale, kernel, group):
            merge_into(out[own], lse[own], part[own, :, :-1], part[own, :, -1])
    return out.to(q.dtype)


@torch.no_grad()
def replicated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Blocks | None,
    scale: float,
    kernel: AttentionKernel,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """The same for a few tokens, of which every rank has the queries, keys and values: one exchange, of results alone.

    q [t, heads, d], k and v [t, groups, d]; past as for `cached_attention`. Returns [t, heads, d] and the
    logsumexps [t, heads], the same bits on every rank, for all merge the same parts in the same order. A collective
    over the group.
    """
    dtype = kernel.compute_dtype(q.dtype)
    queries = q.to(dtype)
    out, lse = kernel.causal_forward(queries, k.to(dtype), v.to(dtype), [0, len(q)], scale)
    if past is not None:
        result = _attend(queries, past, scale, kernel)
        everyone = result.new_empty((group.size() * len(q), *result.shape[1:]))
        dist.all_gather_into_tensor(everyone, result, group=group)
        for part in everyone.unflatten(0, (group.size(), -1)):
            merge_into(out, lse, part[..., :-1], part[..., -1])
    return out.to(q.dtype), lse


def _attend(q: Tensor, past: Blocks, scale: float, kernel: AttentionKernel) -> Tensor:
    """Queries over cached keys and values: [t, heads, d + 1], the last column the logsumexp: both travel at once."""
    out, lse = attend_blocks(q, past, scale, kernel)
    return torch.cat((out, lse[..., None]), dim=-1)


def _over_the_past(
    q: Tensor,
    past: Blocks,
    layout: SequenceLayout,
    scale: float,
    kernel: AttentionKernel,
    group: dist.ProcessGroup,
) -> Tensor:
    """Queries of this rank over what each rank has cached: [ranks, rows, heads, d + 1], see `_attend`."""
    size, width = group.size(), max(layout.used)
    everyone = q.new_empty((size * width, *q.shape[1:]))
    dist.all_gather_into_tensor(everyone, q[:width].contiguous(), group=group)
    # Ranks with fewer rows have padding at their ends, which nobody attends with.
    rows = torch.cat([torch.arange(used) + rank * width for rank, used in enumerate(layout.used)]).to(q.device)
    results = torch.zeros((size * width, q.shape[1], q.shape[2] + 1), dtype=torch.float32, device=q.device)
    results[rows] = _attend(everyone[rows], past, scale, kernel)
    received = torch.empty_like(results)
    dist.all_to_all_single(received, results, group=group)
    return received.unflatten(0, (size, width))
