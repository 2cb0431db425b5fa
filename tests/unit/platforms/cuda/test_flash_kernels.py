"""The kernels of a GPU without Transformer Engine, over stubs of the functions that they call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longvita.attention.core import CoreAttention
from longvita.attention.ring import merge_into
from longvita.platforms.base import importable
from longvita.platforms.cpu.attention import FlashKernel
from longvita.platforms.cuda.flash_kernels import FlashAttnKernel, TorchFlashKernel, VarlenKernel
from tests.stubs import aten_flash, nvidia_platform

HEADS, GROUPS, DIM, SCALE = 6, 2, 16, 0.25
BOUNDS = [0, 9, 10, 42, 60]
TOLERANCE = 0.02
"""Relative to the largest entry, of bf16."""


@pytest.fixture(params=["flash-attn", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[VarlenKernel]:
    if request.param == "torch":
        yield TorchFlashKernel(aten_flash.flash_attention_forward, aten_flash.flash_attention_backward)
        return
    monkeypatch.syspath_prepend(str(nvidia_platform.ROOT / "flash"))
    yield FlashAttnKernel()
    importable.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


def rows(count: int, heads: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, heads, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype: torch.dtype, keys: int = BOUNDS[-1]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output's gradient (fp32, as in the ring), q, k and v."""
    count = BOUNDS[-1]
    grad, q = rows(count, HEADS, 1, torch.float32), rows(count, HEADS, 2, dtype)
    return grad, q, rows(keys, GROUPS, 3, dtype), rows(keys, GROUPS, 4, dtype)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    difference = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    assert difference < tolerance, difference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, TOLERANCE), (torch.float32, 1e-5)])
@pytest.mark.parametrize("keys", [None, 23])
def test_it_equals_the_kernel_of_the_cpu(
    kernel: VarlenKernel, dtype: torch.dtype, tolerance: float, keys: int | None
) -> None:
    """Causal inside documents, and every query over 23 keys."""
    grad, q, k, v = inputs(dtype, keys or BOUNDS[-1])
    how = "causal" if keys is None else "full"
    bounds = (BOUNDS,) if keys is None else ()
    wide, reference = [x.float() for x in (q, k, v)], FlashKernel()
    out, lse = getattr(kernel, f"{how}_forward")(q, k, v, *bounds, SCALE)
    wanted, wanted_lse = getattr(reference, f"{how}_forward")(*wide, *bounds, SCALE)
    assert out.dtype == lse.dtype == torch.float32
    assert_close(out, wanted, tolerance)
    assert_close(lse, wanted_lse, tolerance)
    found = getattr(kernel, f"{how}_backward")(grad, q, k, v, out, lse, *bounds, SCALE)
    expected = getattr(reference, f"{how}_backward")(grad, *wide, wanted, wanted_lse, *bounds, SCALE)
    for part, one in zip(found, expected, strict=True):
        assert_close(part, one, 2 * tolerance)


def test_parts_are_merged_as_one(kernel: VarlenKernel) -> None:
    """The gradients of two parts of the keys, with the output and logsumexp over both, equal those of all keys."""
    grad, q, k, v = inputs(torch.bfloat16, 40)
    full, full_lse = kernel.full_forward(q, k, v, SCALE)
    out, lse = kernel.full_forward(q, k[:13], v[:13], SCALE)
    merge_into(out, lse, *kernel.full_forward(q, k[13:], v[13:], SCALE))
    assert_close(out, full, TOLERANCE)
    assert_close(lse, full_lse, TOLERANCE)
    _, all_keys, all_values = kernel.full_backward(grad, q, k, v, full, full_lse, SCALE)
    parts = [kernel.full_backward(grad, q, k[s], v[s], out, lse, SCALE) for s in (slice(13), slice(13, None))]
    assert_close(torch.cat([part[1] for part in parts]), all_keys, TOLERANCE)
    assert_close(torch.cat([part[2] for part in parts]), all_values, TOLERANCE)


def test_inputs_keep_their_type(kernel: VarlenKernel) -> None:
    assert [kernel.compute_dtype(dtype) for dtype in (torch.bfloat16, torch.float32)] == [torch.bfloat16, torch.float32]
    assert FlashKernel().compute_dtype(torch.bfloat16) == torch.float32


def test_core_attention_returns_gradients(kernel: VarlenKernel) -> None:
    attention = CoreAttention.__new__(CoreAttention)
    torch.nn.Module.__init__(attention)
    attention.kernel = kernel
    grad, q, k, v = inputs(torch.bfloat16)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention.attend_documents(q, k, v, BOUNDS, SCALE)
    out.backward(grad.to(out.dtype))
    assert out.dtype == torch.bfloat16 and all(leaf.grad.dtype == torch.bfloat16 for leaf in leaves)
    reference = [leaf.detach().float().requires_grad_() for leaf in leaves]
    from longvita.platforms.cpu.attention import attend_documents

    attend_documents(*reference, BOUNDS, SCALE).backward(grad)
    for leaf, one in zip(leaves, reference, strict=True):
        assert_close(leaf.grad, one.grad, 2 * TOLERANCE)


@pytest.mark.parametrize("name", ["_flash_attention_forward", "_flash_attention_backward"])
def test_the_stub_has_the_parameters_of_torchs_operator(name: str) -> None:
    schema = getattr(torch.ops.aten, name).default._schema
    stub = inspect.signature(getattr(aten_flash, name.removeprefix("_"))).parameters
    assert [argument.name for argument in schema.arguments] == list(stub)
    keywords = [argument.name for argument in schema.arguments if argument.kwarg_only]
    assert keywords == [one.name for one in stub.values() if one.kind is one.KEYWORD_ONLY]
