"""Causal attention of packed documents compared with a dense mask: forward and backward pass.

    python tools/benchmark/packed_attention.py --json

One process of one thread. `speedup`: seconds of torch's attention with a mask [tokens, tokens] that separates
documents, divided by ours, which computes each document on its own; median of alternating rounds. `output_difference`
and `gradient_difference`: the largest differences of all outputs and all gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from harness import print_figures
from torch import Tensor

from longvita.platforms.cpu.attention import attend_documents

HEADS, GROUPS, DIM = 4, 2, 64
SCALE = DIM**-0.5


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--documents", type=int, default=16, help="documents of the sequence")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of each document")
    parser.add_argument("--rounds", type=int, default=3, help="number of measured rounds")
    arguments = parser.parse_args()
    if min(arguments.documents, arguments.tokens, arguments.rounds) < 1:
        parser.error("at least 1 document of 1 token and 1 round")
    torch.set_num_threads(1)
    figures = measured(arguments.documents, arguments.tokens, arguments.rounds)
    print_figures(figures, arguments.json)
    return 0


def measured(documents: int, tokens: int, rounds: int) -> dict[str, float]:
    """All results."""
    generator = torch.Generator().manual_seed(0)
    *inputs, grad = (
        torch.randn(documents * tokens, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )
    bounds = [document * tokens for document in range(documents + 1)]
    mask = torch.block_diag(*[torch.ones(tokens, tokens, dtype=torch.bool).tril()] * documents)

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_documents(q, k, v, bounds, SCALE)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    seconds: list[float] = []
    for number in range(rounds + 1):  # the first warms up
        ours, ours_seconds = forward_backward(packed, inputs, grad)
        theirs, theirs_seconds = forward_backward(dense, inputs, grad)
        print(f"dense mask {theirs_seconds:.2f} s, packed {ours_seconds:.3f} s", flush=True)
        if number:
            seconds.append(theirs_seconds / ours_seconds)
    differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return {
        "speedup": statistics.median(seconds),
        "output_difference": differences[0],
        "gradient_difference": max(differences[1:]),
    }


def forward_backward(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[list[Tensor], float]:
    """Output and gradients of q, k and v, and the seconds of their computation."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    start = time.perf_counter()
    out = attend(*leaves)
    grads = torch.autograd.grad(out, leaves, grad)
    return [out.detach(), *grads], time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
