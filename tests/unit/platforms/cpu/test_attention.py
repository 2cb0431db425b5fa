"""PackedAttention against a naive reference in fp64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.attention import kv_cache
from longvita.attention.core import attend_chunk
from longvita.attention.kv_cache import KVCache
from longvita.attention.ring import merge_into
from longvita.attention.seq_params import CachedSeqParams
from longvita.platforms.cpu.attention import FlashKernel, PackedAttention

HEADS, GROUPS, HEAD_DIM = 6, 2, 20
LENGTHS = {
    "one document": [37],
    "one token each": [1, 1, 1],
    "odd": [5, 1, 33, 2, 7],
    "equal": [9, 9, 9],
    "equal runs apart": [9, 9, 30, 9, 9, 1, 9],
    "one class": [17, 20, 24],
    "long and short": [150, 3, 131, 140, 3, 4],
    "empty document": [4, 0, 5],
    "many classes": [8, 9, 16, 17, 48, 49, 64, 65, 129],
}


def attention(**fields: Any) -> PackedAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        **{"attention_dropout": 0.0, **fields},
    )
    return PackedAttention(config, 1, AttnMaskType.causal, "self")


def naive(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """[s, heads, d] queries on [past + s, groups, d] keys, bottom-right causal, in fp64."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeat, 1), v.double().repeat_interleave(repeat, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(scores.shape[2] - scores.shape[1] + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def naive_packed(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    return torch.cat([naive(q[a:b], k[a:b], v[a:b]) for a, b in itertools.pairwise(bounds)])


def qkv(tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value, of which value is a slice of a larger tensor, as megatron-core gives it."""
    generator = torch.Generator().manual_seed(tokens)
    query = torch.randn(tokens, HEADS, HEAD_DIM, generator=generator, dtype=dtype)
    key = torch.randn(tokens, GROUPS, HEAD_DIM, generator=generator, dtype=dtype)
    value = torch.randn(tokens, GROUPS, 2 * HEAD_DIM, generator=generator, dtype=dtype)[..., HEAD_DIM:]
    return [query.requires_grad_(), key.requires_grad_(), value.detach().requires_grad_()]


def packed(bounds: list[int]) -> PackedSeqParams:
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    longest = max(b - a for a, b in itertools.pairwise(bounds))
    return PackedSeqParams("thd", cu_seqlens, cu_seqlens, max_seqlen_q=longest, max_seqlen_kv=longest)


def assert_like(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_values_and_gradients(lengths: list[int]) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    inputs = qkv(bounds[-1])
    out = attention()(*inputs, None, packed_seq_params=packed(bounds))
    assert out.shape == (bounds[-1], 1, HEADS * HEAD_DIM)
    expected = naive_packed(*inputs, bounds)
    assert_like(out, expected.reshape(out.shape))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    actual = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(expected, inputs, grad.double().view(expected.shape))
    for a, b in zip(actual, wanted):
        assert_like(a, b.double(), 5e-6)


def test_documents_do_not_see_each_other() -> None:
    inputs = qkv(12)
    out = attention()(*inputs, None, packed_seq_params=packed([0, 5, 12]))
    grads = torch.autograd.grad(out[:5].sum(), inputs)
    assert all(grad[5:].abs().max() == 0 for grad in grads)


def test_padded_bounds_are_used_where_given() -> None:
    inputs = qkv(12)
    params = packed([0, 4, 10])
    params.cu_seqlens_q_padded = params.cu_seqlens_kv_padded = torch.tensor([0, 6, 12], dtype=torch.int32)
    out = attention()(*inputs, None, packed_seq_params=params)
    assert_like(out.view(12, HEADS, HEAD_DIM), naive_packed(*inputs, [0, 6, 12]))


def test_bf16_is_computed_in_fp32() -> None:
    inputs = qkv(21, torch.bfloat16)
    out = attention()(*inputs, None, packed_seq_params=packed([0, 8, 21]))
    assert out.dtype == torch.bfloat16
    wide = [x.detach().float() for x in inputs]
    assert torch.equal(out, attention()(*wide, None, packed_seq_params=packed([0, 8, 21])).bfloat16())


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_batch_without_packing(mask: AttnMaskType) -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(17, 3, HEADS, HEAD_DIM, generator=generator, requires_grad=True)
    k, v = (torch.randn(17, 3, GROUPS, HEAD_DIM, generator=generator, requires_grad=True) for _ in "kv")
    out = attention()(q, k, v, None, attn_mask_type=mask)
    expected = torch.stack(
        [naive(q[:, i], k[:, i], v[:, i], mask == AttnMaskType.causal) for i in range(3)], dim=1
    ).flatten(2)
    assert_like(out, expected)
    grad = torch.randn(out.shape, generator=generator)
    actual = torch.autograd.grad(out, (q, k, v), grad)
    wanted = torch.autograd.grad(expected, (q, k, v), grad.double())
    for a, b in zip(actual, wanted):
        assert_like(a, b.double(), 5e-6)


def test_mask_type_of_the_layer_is_the_default() -> None:
    q, k, v = (torch.randn(5, 1, HEADS, HEAD_DIM) for _ in "qkv")
    assert torch.equal(attention()(q, k, v, None), attention()(q, k, v, None, attn_mask_type=AttnMaskType.causal))


@pytest.mark.parametrize("chunks", [[37], [1] * 37, [16, 1, 20], [5, 30, 1, 1]])
def test_chunks_over_a_cache_equal_one_pass(chunks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.detach() for x in qkv(37)]
    monkeypatch.setattr(kv_cache, "PAGE_ROWS", 9)
    cache, core = KVCache(37), attention()
    parts = []
    for start, end in itertools.pairwise([0, *itertools.accumulate(chunks)]):
        params = CachedSeqParams(kv_cache=cache)
        parts.append(core(*(x[start:end] for x in inputs), None, packed_seq_params=params))
        cache.advance(end - start)
    expected = naive(*inputs).reshape(37, 1, -1)
    assert_like(torch.cat(parts), expected)
    assert torch.equal(torch.cat([keys for keys, _ in cache.past(1)]), inputs[1])


def test_bf16_chunk_is_merged_in_fp32() -> None:
    q, k, v = (x.detach() for x in qkv(30, torch.bfloat16))
    past = [(k[:7], v[:7]), (k[7:20], v[7:20])]
    out, _ = attend_chunk(q[20:], k[20:], v[20:], past, HEAD_DIM**-0.5, FlashKernel())
    wide_past = [(keys.float(), values.float()) for keys, values in past]
    wide, _ = attend_chunk(q[20:].float(), k[20:].float(), v[20:].float(), wide_past, HEAD_DIM**-0.5, FlashKernel())
    assert torch.equal(out, wide.bfloat16())


def test_merge_is_exact_for_far_apart_scores() -> None:
    q, k, v = (x.detach() for x in qkv(24))
    k = k * 40
    past = [(k[:4], v[:4]), (k[4:16], v[4:16])]
    assert_like(attend_chunk(q[16:], k[16:], v[16:], past, HEAD_DIM**-0.5, FlashKernel())[0], naive(q[16:], k, v), 1e-5)


def test_merge_weighs_by_logsumexp() -> None:
    ones = torch.ones(1, 1, 1, 2)
    out, lse = ones.clone(), torch.zeros(1, 1, 1)
    merge_into(out, lse, 3 * ones, torch.zeros(1, 1, 1))
    assert torch.allclose(out, 2 * ones)
    assert torch.allclose(lse, torch.full((1, 1, 1), 2.0).log())


@pytest.mark.parametrize("bounds", [[0, 5], [1, 9], [0, 6, 4, 9]])
def test_bounds_that_do_not_fit_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        attention()(*qkv(9), None, packed_seq_params=packed(bounds))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="context_parallel_size=2"):
        attention(context_parallel_size=2)
    with pytest.raises(ValueError, match="attention_dropout"):
        attention(attention_dropout=0.1)
    with pytest.raises(ValueError, match="attention_bias"):
        attention()(*qkv(9), None, attention_bias=torch.zeros(1), packed_seq_params=packed([0, 9]))
