"""MLPs computed in chunks of rows, so that their activations do not grow with the sequence.

The inner activations of an MLP are several times as wide as the hidden state, and autograd keeps them for every token.
Here only the input is kept; the backward pass computes each chunk again (sequence tiling, arXiv 2506.13996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def chunk_mlps(layers: Iterable[nn.Module], chunk: int) -> None:
    """Limit the MLP of each of Megatron's layers to `chunk` rows of this rank at once."""
    for layer in layers:
        mlp: Any = layer.mlp
        mlp.forward = ChunkedForward(mlp.forward, list(mlp.parameters()), chunk)


class ChunkedForward:
    """Forward pass of an MLP without biases: [t, b, h] to ([t, b, h], None), `chunk` rows of t at once."""

    def __init__(self, forward: Callable[..., tuple[Tensor, Tensor | None]], weights: list[nn.Parameter], chunk: int):
        self._forward, self._weights, self._chunk = forward, weights, chunk

    def __call__(self, hidden: Tensor, **unused: Any) -> tuple[Tensor, None]:
        """Compute the MLP. Raises ValueError where it returns a bias, which its layer would have to add."""
        if len(hidden) <= self._chunk:
            return _without_bias(self._forward(hidden)), None
        return _Chunks.apply(hidden, self._forward, self._chunk, *self._weights), None


def _without_bias(result: tuple[Tensor, Tensor | None]) -> Tensor:
    output, bias = result
    if bias is not None:
        raise ValueError("an MLP whose layer adds its bias cannot be computed in chunks (training.mlp_chunk_size)")
    return output


class _Chunks(torch.autograd.Function):
    """The weights are inputs: each receives its gradient once, and Megatron's reductions start when it is complete."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, forward: Callable, chunk: int, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.run, ctx.chunk, ctx.weights = forward, chunk, weights
        output = torch.empty_like(hidden)
        for part, rows in zip(output.split(chunk), hidden.split(chunk), strict=True):
            part.copy_(_without_bias(forward(rows)))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        weights = [weight for weight in ctx.weights if weight.requires_grad]
        sums: dict[int, Tensor] = {}
        parts = zip(grad_hidden.split(ctx.chunk), hidden.split(ctx.chunk), grads[0].split(ctx.chunk), strict=True)
        for grad_part, rows, grad in parts:
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                output = _without_bias(ctx.run(leaf))
            # A fused kernel that adds to main_grad returns no gradient, or one that is not read.
            found = torch.autograd.grad(output, [leaf, *weights], grad, allow_unused=True)
            grad_part.copy_(found[0])
            for weight, part in zip(weights, found[1:], strict=True):
                if part is not None:
                    known = sums.get(id(weight))
                    sums[id(weight)] = part if known is None else known.add_(part)
        return grad_hidden, None, None, *(sums.get(id(weight)) for weight in ctx.weights)
