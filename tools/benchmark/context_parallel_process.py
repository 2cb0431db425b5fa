"""The measurements of context_parallel.py, in each of its processes."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from harness import print_figures, start_process
from rich.console import Console
from sample_lengths import packed
from torch import Tensor

from longvita.attention.ring import RingPlan, plan_ring, ring_attention
from longvita.attention.ulysses import ulysses_attention
from longvita.parallel.sequence_layout import SequenceLayout, compact, imbalance, sliced, undivided, zigzag
from longvita.platforms.cpu.attention import FlashKernel, attend_documents

HEADS, GROUPS, DIM = 4, 2, 64
SCALE = DIM**-0.5
SMALL = 4096
"""Tokens of comparisons that are not timed."""
MIXED_TOKENS, MIXED_SEQUENCES, MIXED_CP = 131072, 40, 4


def run(payload: dict[str, Any]) -> int:
    """Run all measurements; rank 0 prints."""
    start_process()
    groups = {size: dist.new_group(list(range(size))) for size in (2, 3, 4)}
    console = Console(stderr=True, quiet=dist.get_rank() > 0)
    figures = timed(payload["tokens"], payload["pairs"], groups[2], console)
    for size, group in groups.items():
        for name, attend in (("ring", ring), ("ulysses", ulysses)):
            if name == "ring" or HEADS % size == 0:
                differences, sent = compared(attend, SMALL, size, group)
                if dist.get_rank() == 0:
                    text = " ".join(f"{what} {value:.1e}" for what, value in differences.items())
                    print(f"CP {size}, {name}, {SMALL:,} tokens: {text}, {sent:.3f} of the ring's bytes")
                    if (size, name) == (2, "ring"):
                        figures |= differences
    if dist.get_rank() == 0:
        figures |= mixed()
        print_figures(figures, payload["json"])
    dist.barrier()
    return 0


def tensors(tokens: int) -> list[Tensor]:
    """q, k, v and the output's gradient of the full sequence, identical on all ranks."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS, HEADS)]


def ring(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, group: dist.ProcessGroup) -> Tensor:
    """Ring attention of this rank's rows."""
    return ring_attention(q, k, v, plan_ring(layout, group.rank()), SCALE, FlashKernel(), group)


def ulysses(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, group: dist.ProcessGroup) -> Tensor:
    """Ulysses attention of this rank's rows."""
    return ulysses_attention(q, k, v, one_process, group)


def one_process(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the full sequence in one process."""
    return attend_documents(q, k, v, [0, len(q)], SCALE)


def forward_backward(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    return out.detach(), list(torch.autograd.grad(out, leaves, grad))


def timed(tokens: int, pairs: int, group: dist.ProcessGroup, console: Console) -> dict[str, float]:
    """Speed and bytes of the ring at CP 2; other ranks wait."""
    layout = zigzag([tokens], 2)
    seconds: dict[str, list[float]] = {"one": [], "ring": [], "kernels": []}
    rank, sent = dist.get_rank(), torch.zeros(1)
    if rank < 2:
        everything = tensors(tokens)
        rows = layout.tokens(rank)
        *own, grad = [x[rows].contiguous() for x in everything]
        plan = plan_ring(layout, rank)
        for number in range(pairs + 1):  # the first warms up
            with counted_bytes() as count:
                dist.barrier(group)
                start = time.perf_counter()
                forward_backward(lambda q, k, v: ring(q, k, v, layout, group), own, grad)
                ring_seconds = slower(time.perf_counter() - start, group)
            sent[0] = count[0]
            dist.barrier(group)
            start = time.perf_counter()
            kernels_alone(plan, own, grad)
            kernel_seconds = slower(time.perf_counter() - start, group)
            dist.barrier(group)
            start = time.perf_counter()
            if rank == 0:
                forward_backward(one_process, everything[:3], everything[3])
            one_seconds = slower(time.perf_counter() - start if rank == 0 else 0.0, group)
            console.log(
                f"one process {one_seconds:.2f} s, ring {ring_seconds:.2f} s, its kernels {kernel_seconds:.2f} s",
                highlight=False,
            )
            if number:
                measured = {"one": one_seconds, "ring": ring_seconds, "kernels": kernel_seconds}
                for name, value in measured.items():
                    seconds[name].append(value)
        dist.all_reduce(sent, op=dist.ReduceOp.MAX, group=group)
    dist.barrier()
    if rank != 0:
        return {}
    pair_bytes = 2 * layout.local_length * GROUPS * DIM * 4
    return {
        "speedup": statistics.median(a / b for a, b in zip(seconds["one"], seconds["ring"], strict=True)),
        "efficiency": statistics.median(a / b for a, b in zip(seconds["kernels"], seconds["ring"], strict=True)),
        "bytes_over_minimum": float(sent) / (3 * (layout.cp_size - 1) * pair_bytes),
        "flop_imbalance": imbalance(layout),
    }


def kernels_alone(plan: RingPlan, own: list[Tensor], grad: Tensor) -> None:
    """The kernel calls of a ring's forward and backward pass on local tensors, without communication and merging."""
    kernel, (q, k, v) = FlashKernel(), own
    used = slice(plan.bounds[-1])
    bounds = list(plan.bounds)
    out, lse = kernel.causal_forward(q[used], k[used], v[used], bounds, SCALE)
    for step in plan.steps:
        for block in step.blocks:
            kernel.full_forward(q[slice(*block.queries)], k[slice(*block.keys)], v[slice(*block.keys)], SCALE)
    kernel.causal_backward(grad[used], q[used], k[used], v[used], out, lse, bounds, SCALE)
    for step in plan.steps:
        for block in step.blocks:
            queries, keys = slice(*block.queries), slice(*block.keys)
            kernel.full_backward(grad[queries], q[queries], k[keys], v[keys], out[queries], lse[queries], SCALE)


def slower(seconds: float, group: dist.ProcessGroup) -> float:
    """The maximum over all ranks."""
    longest = torch.tensor(seconds)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    return float(longest)


@contextlib.contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Count the bytes that this process sends during the body, in the list's only entry."""
    count = [0]
    name = "batch_isend_irecv"
    real = getattr(dist, name)

    def counting(operations: list[dist.P2POp]) -> list[dist.Work]:
        count[0] += sum(op.tensor.numel() * op.tensor.element_size() for op in operations if op.op is dist.isend)
        return real(operations)

    setattr(dist, name, counting)
    try:
        yield count
    finally:
        setattr(dist, name, real)


def compared(
    attend: Callable[..., Tensor], tokens: int, size: int, group: dist.ProcessGroup
) -> tuple[dict[str, float], float]:
    """Largest differences from one process, and bytes sent point to point divided by the ring's minimum."""
    worst, sent = torch.zeros(2), torch.zeros(1)
    lengths = [tokens // 24 * 24]
    layout = zigzag(lengths, size) if attend is ring else sliced(undivided(lengths[0], size), size)
    if dist.get_rank() < size:
        everything = tensors(layout.lengths[0])
        rows = layout.tokens(dist.get_rank())
        *own, grad = [x[rows].contiguous() for x in everything]
        with counted_bytes() as count:
            out, grads = forward_backward(lambda q, k, v: attend(q, k, v, layout, group), own, grad)
        sent[0] = count[0]
        wanted_out, wanted = forward_backward(one_process, everything[:3], everything[3])
        worst[0] = (out - wanted_out[rows]).abs().max()
        worst[1] = max((a - b[rows]).abs().max() for a, b in zip(grads, wanted, strict=True))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    dist.all_reduce(sent, op=dist.ReduceOp.MAX)
    minimum = 3 * (size - 1) * 2 * layout.local_length * GROUPS * DIM * 4
    return {"output_difference": float(worst[0]), "gradient_difference": float(worst[1])}, float(sent) / minimum


def mixed() -> dict[str, float]:
    """Tokens whose keys and values are sent, and the imbalance of work, over many packed sequences."""
    generator = random.Random(0)
    moved, moved_zigzag, worst = 0, 0, 1.0
    for _ in range(MIXED_SEQUENCES):
        lengths = packed(generator, MIXED_TOKENS)
        layout = compact(lengths, MIXED_CP)
        moved += moved_tokens(layout)
        moved_zigzag += moved_tokens(zigzag(lengths, MIXED_CP))
        worst = max(worst, imbalance(layout))
    return {"mixed_bytes_over_zigzag": moved / moved_zigzag, "mixed_flop_imbalance": worst}


def moved_tokens(layout: SequenceLayout) -> int:
    """Count the tokens whose keys and values are received in a forward pass, over all ranks."""
    return sum(step.receive for rank in range(layout.cp_size) for step in plan_ring(layout, rank).steps)
