"""An MLP in chunks against the same MLP at once: outputs, gradients, and what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longvita.model.chunked_mlp import ChunkedForward

ROWS, HIDDEN, FFN = 20, 6, 24


class Gated(nn.Module):
    """A SwiGLU MLP with Megatron's interface."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(HIDDEN, 2 * FFN, bias=False), nn.Linear(FFN, HIDDEN, bias=False)
        self.largest = 0

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        self.largest = max(self.largest, len(hidden))
        gate, value = self.up(hidden).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * value), None


def run(chunk: int | None, frozen: bool = False) -> tuple[Tensor, list[Tensor | None], int, int]:
    """Output; gradients of input and weights; numbers that autograd keeps; most rows at once."""
    mlp = Gated()
    mlp.up.weight.requires_grad_(not frozen)
    hidden = torch.randn(ROWS, 1, HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)
    forward = mlp if chunk is None else ChunkedForward(mlp.forward, list(mlp.parameters()), chunk)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output, bias = forward(hidden)
    assert bias is None
    (output * torch.arange(ROWS)[:, None, None]).sum().backward()
    gradients = [hidden.grad, mlp.up.weight.grad, mlp.down.weight.grad]
    return output.detach(), gradients, sum(kept.values()), mlp.largest


@pytest.mark.parametrize("chunk", [1, 7, 10, 19, 20, 64])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_change_nothing(chunk: int, frozen: bool) -> None:
    output, gradients, _, _ = run(chunk, frozen)
    expected, expected_gradients, _, _ = run(None, frozen)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)
    assert (expected_gradients[1] is None) == frozen


def test_only_the_input_is_kept() -> None:
    _, _, kept, largest = run(5)
    assert (kept, largest) == (ROWS * HIDDEN, 5)
    _, _, whole, largest = run(None)
    assert whole >= ROWS * 3 * FFN and largest == ROWS


def test_an_mlp_with_a_bias_is_refused() -> None:
    forward = ChunkedForward(lambda hidden: (hidden, torch.zeros(HIDDEN)), [], 2)
    with pytest.raises(ValueError, match="mlp_chunk_size"):
        forward(torch.zeros(4, 1, HIDDEN))
