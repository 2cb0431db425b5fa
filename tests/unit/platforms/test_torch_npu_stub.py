"""The stub of torch_npu: recorded signatures, correct results, and errors for arguments that the real one refuses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stubs.ascend_platform import torch_npu_alone

HEADS, GROUPS, WIDTH = 4, 2, 8
ENDS = [5, 5, 12]
"""Ends of three documents, the second without a token."""


@pytest.fixture
def npu_library() -> Iterator[Any]:
    with torch_npu_alone() as library:
        yield library


def parameters_of(schema: str) -> list[tuple[str, bool, Any]]:
    """(name, keyword only, default as text or None) of an operator schema's arguments."""
    inside = re.sub(r"\[.*?\]", "", schema[schema.index("(") + 1 : schema.index(" -> ") - 1])
    found, keyword = [], False
    for part in inside.split(", "):
        if part == "*":
            keyword = True
            continue
        declaration, _, default = part.partition("=")
        found.append((declaration.split()[-1], keyword, default or None))
    return found


def test_signatures_are_those_of_the_release(npu_library: Any) -> None:
    assert npu_library.SCHEMAS.keys() == {name for name in npu_library.__all__ if name.startswith("npu_")}
    for name, schema in npu_library.SCHEMAS.items():
        signature = inspect.signature(getattr(npu_library, name))
        found = [
            (
                one.name,
                one.kind is inspect.Parameter.KEYWORD_ONLY,
                None if one.default is inspect.Parameter.empty else one.default,
            )
            for one in signature.parameters.values()
        ]
        wanted = [(argument, keyword, _value(default)) for argument, keyword, default in parameters_of(schema)]
        assert found == wanted, name


def _value(text: str | None) -> Any:
    if text is None:
        return None
    named = {"None": None, "True": True, "False": False}
    if text in named:
        return named[text]
    return text.strip("\"'") if text[0] in "\"'" else float(text) if "." in text or "e-" in text else int(text)


@pytest.mark.npu
def test_the_schemas_are_those_installed() -> None:
    import torch_npu  # the real one

    from tests.stubs.ascend.torch_npu.schemas import SCHEMAS

    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.npu, name).default._schema).removeprefix("npu::") == schema, torch_npu.__version__


def documents() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(ENDS[-1], HEADS, WIDTH, generator=generator, requires_grad=True)
    k, v = (torch.randn(ENDS[-1], GROUPS, WIDTH, generator=generator, requires_grad=True) for _ in range(2))
    return q, k, v


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """torch's own attention of each document."""
    outs, start = [], 0
    for end in ENDS:
        parts = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        wide = [parts[0], *(x.repeat_interleave(HEADS // GROUPS, 0) for x in parts[1:])]
        if end > start:
            out = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=causal)
            outs.append(out.transpose(0, 1))
        start = end
    return torch.cat(outs)


MASK = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("mode", [2, 3])
def test_causal_documents(npu_library: Any, mode: int) -> None:
    q, k, v = documents()
    how = {"atten_mask": MASK, "scale": WIDTH**-0.5, "sparse_mode": mode}
    how |= {"actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS}
    out, maximum, total, *_ = npu_library.npu_fusion_attention(q, k, v, HEADS, "TND", **how)
    expected = plain(q, k, v, causal=True)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, (q, k, v), grad)
    for found, right in zip(torch.autograd.grad(out, (q, k, v), grad), wanted, strict=True):
        torch.testing.assert_close(found, right)
    scale = how.pop("scale")
    grads = npu_library.npu_fusion_attention_grad(
        q, k, v, grad, HEADS, "TND", softmax_max=maximum, softmax_sum=total, attention_in=out, scale_value=scale, **how
    )
    for found, right in zip(grads, wanted, strict=False):
        torch.testing.assert_close(found, right)


def test_statistics_are_head_major_in_each_document(npu_library: Any) -> None:
    q, k, v = documents()
    how = {"scale": 1.0, "actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS}
    _, maximum, _, *_ = npu_library.npu_fusion_attention(q, k, v, HEADS, "TND", **how)
    assert maximum.shape == (ENDS[-1], HEADS, 8)
    scores = torch.einsum("thd,uhd->htu", q[:5], k[:5].repeat_interleave(HEADS // GROUPS, 1))
    torch.testing.assert_close(maximum.reshape(-1)[: 5 * HEADS * 8 : 8].view(HEADS, 5), scores.amax(-1))


def test_without_a_mask_the_sparse_mode_is_ignored(npu_library: Any) -> None:
    q, k, v = documents()
    how = {"scale": WIDTH**-0.5, "actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS}
    out = npu_library.npu_fusion_attention(q, k, v, HEADS, "TND", sparse_mode=2, **how)[0]
    torch.testing.assert_close(out, plain(q, k, v, causal=False))


def test_input_layouts_give_equal_results(npu_library: Any) -> None:
    q, k, v = (torch.randn(6, 3, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS))
    sbh = npu_library.npu_fusion_attention(*(x.flatten(2) for x in (q, k, v)), HEADS, "SBH", scale=0.3)[0]
    bsnd = npu_library.npu_fusion_attention(*(x.transpose(0, 1) for x in (q, k, v)), HEADS, "BSND", scale=0.3)[0]
    bnsd = npu_library.npu_fusion_attention(*(x.permute(1, 2, 0, 3) for x in (q, k, v)), HEADS, "BNSD", scale=0.3)[0]
    torch.testing.assert_close(sbh.unflatten(2, (HEADS, WIDTH)), bsnd.transpose(0, 1))
    torch.testing.assert_close(bnsd.permute(2, 0, 1, 3), bsnd.transpose(0, 1))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"actual_seq_qlen": torch.tensor(ENDS)}, TypeError),
        ({"actual_seq_qlen": [5, 11]}, ValueError),
        ({"actual_seq_kvlen": None}, TypeError),
        ({"sparse_mode": 2, "atten_mask": MASK[:12, :12]}, ValueError),
        ({"sparse_mode": 4, "atten_mask": MASK}, NotImplementedError),
        ({"keep_prob": 0.9}, NotImplementedError),
        ({"cu_seqlens": ENDS}, TypeError),
    ],
)
def test_other_uses_are_errors(npu_library: Any, change: dict, error: type) -> None:
    how = {"actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS} | change
    with pytest.raises(error):
        npu_library.npu_fusion_attention(*documents(), HEADS, "TND", **how)


def test_norm_rotary_and_swiglu(npu_library: Any) -> None:
    x, gamma = torch.randn(5, 2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    out = npu_library.npu_rms_norm(x, gamma, epsilon=1e-5)[0]
    expected = torch.nn.functional.rms_norm(x, (8,), gamma, 1e-5)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for found, right in zip(*(torch.autograd.grad(one, (x, gamma), grad) for one in (out, expected)), strict=True):
        torch.testing.assert_close(found, right)
    torch.testing.assert_close(npu_library.npu_swiglu(x), torch.nn.functional.silu(x[..., :4]) * x[..., 4:])
    q, angles = torch.randn(5, 1, 2, 8), torch.randn(5, 1, 1, 4).repeat(1, 1, 1, 2)
    turned = npu_library.npu_rotary_mul(q, angles.cos(), angles.sin())
    pairs = torch.complex(q[..., :4], q[..., 4:]) * torch.polar(torch.ones(5, 1, 1, 4), angles[..., :4])
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))
