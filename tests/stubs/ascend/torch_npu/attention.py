"""npu_fusion_attention and its gradient in plain torch.

Modelled: input layouts SBH, BSND, BNSD and TND; masks in sparse modes 0 to 3; grouped queries; the softmax statistics
that the gradient takes. Without atten_mask there is no mask at all, whatever sparse_mode says, as on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

COMPRESSED = 2048
"""Side of the triangular mask that represents a causal mask of any size in sparse modes 2 and 3."""
NOT_MODELLED = ("pse", "padding_mask", "prefix", "sink", "dropout_mask")
LANES = 8
"""Times that a softmax statistic is repeated."""


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Output like query; softmax maxima and sums, fp32; the softmax (empty); seed, offset and size of a dropout mask.

    The statistics are [b, n, s, 8]; for TND their shape is [t, n, 8], but in memory each sequence is head-major.
    """
    _refuse(locals())
    lengths = _lengths(query, key, input_layout, actual_seq_qlen, actual_seq_kvlen)
    masking = (atten_mask, sparse_mode, pre_tockens, next_tockens)
    out, maximum, total = _Attention.apply(query, key, value, head_num, input_layout, lengths, masking, scale)
    return out, maximum, total, query.new_empty(0), seed, offset, 0


def npu_fusion_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value (then of pse and sink, empty), from the given statistics."""
    _refuse(locals())
    if softmax_max is None or softmax_sum is None or attention_in is None:
        raise ValueError("npu_fusion_attention_grad needs softmax_max, softmax_sum and attention_in")
    lengths = _lengths(query, key, input_layout, actual_seq_qlen, actual_seq_kvlen)
    masking = (atten_mask, sparse_mode, pre_tockens, next_tockens)
    grads = _gradients(
        (query, key, value, attention_in, dy),
        (softmax_max, softmax_sum),
        (head_num, input_layout, lengths, masking, scale_value),
    )
    return *grads, query.new_empty(0), query.new_empty(0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
        head_num, layout, lengths, masking, scale = how
        out, maximum, total = torch.empty_like(query), [], []
        outs = Parts(out, head_num, layout, [q for q, _ in lengths])
        for index, (q, k, v) in enumerate(_parts(query, key, value, head_num, layout, lengths)):
            if q.shape[2] == 0:
                continue
            scores = _scores(q, k, masking, scale)
            peak = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
            weights = (scores - peak).exp()
            sums = weights.sum(-1, keepdim=True)
            probability = torch.where(sums > 0, weights / sums, 0.0)
            outs.write(index, probability @ _repeated(v, q))
            maximum.append(peak)
            total.append(sums)
        statistics = [_joined(x, layout, query) for x in (maximum, total)]
        ctx.save_for_backward(query, key, value, out, *statistics)
        ctx.how = how
        ctx.mark_non_differentiable(*statistics)
        return out, statistics[0], statistics[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        query, key, value, out, maximum, total = ctx.saved_tensors
        grads = _gradients((query, key, value, out, dy), (maximum, total), ctx.how)
        return *grads, *[None] * len(ctx.how)


def _gradients(tensors: tuple[Tensor, ...], statistics: tuple[Tensor, Tensor], how: Any) -> tuple[Tensor, ...]:
    query, key, value, out, dy = tensors
    head_num, layout, lengths, masking, scale = how
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    groups = _groups(query, key, head_num, layout)
    views = [
        Parts(grads[0], head_num, layout, [q for q, _ in lengths]),
        *(Parts(grad, groups, layout, [k for _, k in lengths]) for grad in grads[1:]),
    ]
    peaks, sums = (_split(x, lengths, layout) for x in statistics)
    outs, dys = (Parts(x, head_num, layout, [q for q, _ in lengths]) for x in (out, dy))
    for index, (q, k, v) in enumerate(_parts(query, key, value, head_num, layout, lengths)):
        if q.shape[2] == 0:
            continue
        scores = _scores(q, k, masking, scale)
        weights = torch.where(sums[index] > 0, (scores - peaks[index]).exp() / sums[index], 0.0)
        grad = dys.read(index)
        wide_k, wide_v = _repeated(k, q), _repeated(v, q)
        inner = weights * (grad @ wide_v.transpose(-1, -2) - (grad * outs.read(index)).sum(-1, keepdim=True)) * scale
        views[0].write(index, inner @ wide_k)
        views[1].write(index, _summed(inner.transpose(-1, -2) @ q, k))
        views[2].write(index, _summed(weights.transpose(-1, -2) @ grad, v))
    return tuple(grads)


class Parts:
    """The sequences of a tensor in an input layout, each as [b, n, s, d]."""

    def __init__(self, tensor: Tensor, heads: int, layout: str, lengths: list[int]):
        self.tensor, self.heads, self.layout = tensor, heads, layout
        self.bounds = list(itertools.accumulate([0, *lengths]))

    def read(self, index: int) -> Tensor:
        """In fp32."""
        return self._view(index).float()

    def write(self, index: int, value: Tensor) -> None:
        """Write a sequence to its place."""
        self._view(index).copy_(value)

    def _view(self, index: int) -> Tensor:
        if self.layout == "TND":
            return self.tensor[self.bounds[index] : self.bounds[index + 1]].transpose(0, 1)[None]
        if self.layout == "SBH":
            return self.tensor.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)
        return self.tensor.transpose(1, 2) if self.layout == "BSND" else self.tensor


def _parts(
    query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, lengths: list[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    groups = _groups(query, key, heads, layout)
    queries = Parts(query, heads, layout, [q for q, _ in lengths])
    others = [Parts(x, groups, layout, [k for _, k in lengths]) for x in (key, value)]
    for index in range(len(lengths)):
        yield queries.read(index), others[0].read(index), others[1].read(index)


def _groups(query: Tensor, key: Tensor, heads: int, layout: str) -> int:
    """Key and value heads; head_num is the number of query heads."""
    found = {"TND": -2, "BSND": -2, "BNSD": 1}
    if layout == "SBH":
        return key.shape[-1] // (query.shape[-1] // heads)
    if query.shape[found[layout]] != heads:
        raise ValueError(f"head_num is {heads}, and the query has {query.shape[found[layout]]} heads in {layout}")
    return key.shape[found[layout]]


def _lengths(query: Tensor, key: Tensor, layout: str, ends_q: Any, ends_k: Any) -> list[tuple[int, int]]:
    """(queries, keys) of each sequence; a single pair for the batch if the input layout has a batch dimension."""
    if layout != "TND":
        if ends_q is not None or ends_k is not None:
            raise ValueError(f"actual_seq_qlen and actual_seq_kvlen go with TND, not with {layout}")
        axis = {"SBH": 0, "BSND": 1, "BNSD": 2}[layout]
        return [(query.shape[axis], key.shape[axis])]
    for name, ends, tensor in (("actual_seq_qlen", ends_q, query), ("actual_seq_kvlen", ends_k, key)):
        if not isinstance(ends, list | tuple) or not all(type(end) is int for end in ends):
            raise TypeError(f"{name} must be a list of the ends of the sequences, int[], not {type(ends).__name__}")
        if any(a > b for a, b in itertools.pairwise([0, *ends])) or ends[-1] != tensor.shape[0]:
            raise ValueError(f"{name} must rise to {tensor.shape[0]}, the number of tokens; it is {ends}")
    if len(ends_q) != len(ends_k):
        raise ValueError("actual_seq_qlen and actual_seq_kvlen name other numbers of sequences")
    return [
        (b - a, d - c) for (a, b), (c, d) in zip(itertools.pairwise([0, *ends_q]), itertools.pairwise([0, *ends_k]))
    ]


def _scores(q: Tensor, k: Tensor, masking: tuple, scale: float) -> Tensor:
    scores = q @ _repeated(k, q).transpose(-1, -2) * scale
    hidden = _hidden(scores.shape[-2], scores.shape[-1], *masking)
    return scores if hidden is None else scores.masked_fill(hidden, float("-inf"))


def _hidden(queries: int, keys: int, mask: Tensor | None, mode: int, before: int, after: int) -> Tensor | None:
    """True for each masked key: [queries, keys] or a shape that broadcasts to [b, n, queries, keys]."""
    if mask is None:
        return None
    if mode in (2, 3):
        if mask.shape != (COMPRESSED, COMPRESSED) or mask.dtype != torch.bool:
            raise ValueError(f"sparse_mode {mode} takes the bool mask of 2048 x 2048, not {mask.shape} of {mask.dtype}")
        shift = keys - queries if mode == 3 else 0
        return torch.ones(queries, keys, dtype=torch.bool).triu(1 + shift)
    if mode not in (0, 1):
        raise NotImplementedError(f"sparse_mode {mode} is not modelled here")
    if mask.shape[-2:] != (queries, keys):
        raise ValueError(f"sparse_mode {mode} takes a mask of {queries} x {keys}, not {tuple(mask.shape)}")
    if mode == 1:
        return mask.bool()
    distance = torch.arange(keys)[None] - torch.arange(queries)[:, None]
    return mask.bool() | (distance > after) | (-distance > before)


def _repeated(x: Tensor, like: Tensor) -> Tensor:
    """Key or value heads repeated for the query heads of their groups."""
    return x.repeat_interleave(like.shape[1] // x.shape[1], dim=1)


def _summed(grad: Tensor, x: Tensor) -> Tensor:
    return grad.unflatten(1, (x.shape[1], -1)).sum(2)


def _joined(parts: list[Tensor], layout: str, query: Tensor) -> Tensor:
    """Statistics of all sequences with their lanes."""
    lanes = [part.expand(*part.shape[:-1], LANES) for part in parts]
    if layout != "TND":
        return lanes[0].contiguous()
    flat = torch.cat([part.reshape(-1) for part in lanes])
    return flat.view(query.shape[0], query.shape[1], LANES)


def _split(statistics: Tensor, lengths: list[tuple[int, int]], layout: str) -> list[Tensor]:
    """[b, n, s, 1] of each sequence."""
    if layout != "TND":
        return [statistics[..., :1]]
    heads = statistics.shape[1]
    sizes = [queries * heads * LANES for queries, _ in lengths]
    parts = statistics.reshape(-1).split(sizes)
    return [part.view(1, heads, queries, LANES)[..., :1] for part, (queries, _) in zip(parts, lengths, strict=True)]


def _refuse(arguments: dict[str, Any]) -> None:
    given = [name for name in NOT_MODELLED if arguments.get(name) is not None]
    if given or arguments["keep_prob"] != 1.0 or arguments["softmax_layout"]:
        raise NotImplementedError(f"not modelled here: {given or 'dropout, softmax_layout'}")
    layout = arguments["input_layout"]
    if layout not in ("SBH", "BSND", "BNSD", "TND"):
        raise ValueError(f"input_layout {layout!r} is not SBH, BSND, BNSD or TND")
