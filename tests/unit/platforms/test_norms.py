"""RMSNorm and LayerNorm."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from longvita.platforms.norms import LayerNorm, RMSNorm

HIDDEN = 24


def config(**fields: object) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, **fields)


def test_rms_norm_values_and_gradients() -> None:
    norm = RMSNorm(config(), HIDDEN, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 2, HIDDEN, requires_grad=True)
    grad = torch.randn(5, 2, HIDDEN)
    wide, weight = x.double(), norm.weight.double()
    expected = wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-3).rsqrt() * weight
    out = norm(x)
    assert torch.allclose(out.double(), expected, atol=1e-6)
    actual = torch.autograd.grad(out, (x, norm.weight), grad)
    wanted = torch.autograd.grad(expected, (x, norm.weight), grad.double())
    for a, b in zip(actual, wanted):
        assert torch.allclose(a, b, atol=2e-6)


def test_rms_norm_supports_noncontiguous_rows_and_zeros() -> None:
    norm = RMSNorm(config(), HIDDEN, eps=1e-6)
    x = torch.randn(2, 5, HIDDEN).transpose(0, 1)
    assert torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (HIDDEN,), norm.weight, 1e-6), atol=1e-6)
    zeros = torch.zeros(3, HIDDEN, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(zeros).sum(), zeros)
    assert torch.isfinite(grad).all()


def test_rms_norm_of_bf16_is_computed_in_fp32() -> None:
    norm = RMSNorm(config(params_dtype=torch.bfloat16, bf16=True), HIDDEN)
    x = torch.randn(5, HIDDEN).bfloat16()
    assert norm(x).dtype == norm.weight.dtype == torch.bfloat16
    assert torch.equal(norm(x), torch.nn.functional.rms_norm(x.float(), (HIDDEN,), None, 1e-6).bfloat16())


def test_layer_norm_is_torchs() -> None:
    norm = LayerNorm(config(), HIDDEN, eps=1e-4)
    x = torch.randn(3, HIDDEN)
    assert torch.equal(norm(x), torch.nn.functional.layer_norm(x, (HIDDEN,), norm.weight, norm.bias, 1e-4))


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_weights_are_marked_for_sequence_parallel(norm: type) -> None:
    for sequence_parallel in (False, True):
        fields = {"sequence_parallel": sequence_parallel, "tensor_model_parallel_size": 2}
        marks = [p.sequence_parallel for p in norm(config(**fields), HIDDEN, eps=1e-6).parameters()]
        assert marks == [sequence_parallel] * len(marks) and marks


def test_megatron_cores_own_norm_still_refuses_sequence_parallel() -> None:
    """The reason for our RMSNorm, which can be removed once this fails."""
    wanted = config(sequence_parallel=True, tensor_model_parallel_size=2, normalization="RMSNorm")
    with pytest.raises(AssertionError, match="sequence parallel"):
        WrappedTorchNorm(wanted, HIDDEN)
