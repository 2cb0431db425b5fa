"""The logits-masked head compared with a plain one: output layer and cross-entropy, forward and backward pass.

    python tools/benchmark/logits_mask.py --json

Each head has a process of one thread, so that their peaks are separate. Memory is counted relative to the start of the
pass, without the gradient of the weight, which both heads need. With few loss tokens: `memory_ratio`, peak bytes of the
plain head divided by ours; `time_ratio`, seconds of the plain head divided by ours; `loss_difference` (relative) and
`gradient_difference`. With a loss on every token: `chunked_memory_ratio`, the peak of the plain head divided by ours,
and `chunked_time_ratio`, our seconds divided by the plain head's. Seconds are those of the fastest round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist
from harness import print_figures
from peak_memory import peak, reset_peak, resident
from torch import Tensor

from longvita.data.batch import IGNORED_LABEL
from longvita.model.language import chunked_cross_entropy, select_rows

HEADS = ("ours", "plain")


@dataclass(frozen=True)
class HeadTask:
    """Sizes of a head and its sequence."""

    vocabulary: int
    hidden: int
    tokens: int
    loss_tokens: int
    chunk: int
    """Tokens whose logits our head keeps at once."""


@dataclass(frozen=True)
class HeadPass:
    """Result, time and memory of a pass."""

    loss: float
    grads: list[np.ndarray]
    """Gradients of the hidden states and of the weight."""
    seconds: float
    peak_bytes: int
    """Peak memory in addition to that before the pass and the weight's gradient."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--vocabulary", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--loss-tokens", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=1024, help="training.loss_chunk_size")
    parser.add_argument("--rounds", type=int, default=2, help="passes of each head")
    arguments = parser.parse_args()
    if not 1 <= arguments.loss_tokens <= arguments.tokens or arguments.rounds < 1:
        parser.error("--loss-tokens must be between 1 and --tokens, and --rounds at least 1")
    sizes = (arguments.vocabulary, arguments.hidden, arguments.tokens)
    few = compare_heads(HeadTask(*sizes, arguments.loss_tokens, arguments.chunk), arguments.rounds)
    every = compare_heads(HeadTask(*sizes, arguments.tokens, arguments.chunk), arguments.rounds)
    figures = {
        "memory_ratio": few["plain"].peak_bytes / few["ours"].peak_bytes,
        "time_ratio": few["plain"].seconds / few["ours"].seconds,
        **differences(few["ours"], few["plain"]),
        "chunked_memory_ratio": every["plain"].peak_bytes / every["ours"].peak_bytes,
        "chunked_time_ratio": every["ours"].seconds / every["plain"].seconds,
        **{f"chunked_{name}": value for name, value in differences(every["ours"], every["plain"]).items()},
    }
    print_figures(figures, arguments.json)
    return 0


def differences(ours: HeadPass, plain: HeadPass) -> dict[str, float]:
    """The relative difference of the losses, and the largest difference of the gradients."""
    return {
        "loss_difference": abs(ours.loss - plain.loss) / abs(plain.loss),
        "gradient_difference": max(float(np.abs(a - b).max()) for a, b in zip(ours.grads, plain.grads, strict=True)),
    }


def compare_heads(task: HeadTask, rounds: int) -> dict[str, HeadPass]:
    """Run both heads alternately, each in its own process, and return the fastest round of each."""
    context = multiprocessing.get_context("spawn")
    ends, processes = {}, []
    for head in HEADS:
        ends[head], other = context.Pipe()
        processes.append(context.Process(target=work, args=(head, task, other), daemon=True))
        processes[-1].start()
    best: dict[str, HeadPass] = {}
    for number in range(rounds):
        for head in HEADS:
            ends[head].send(number)
            result: HeadPass = ends[head].recv()
            print(
                f"{task.loss_tokens:,} loss tokens, {head}: {result.seconds:.2f} s, "
                f"{result.peak_bytes / 2**20:,.0f} MiB",
                flush=True,
            )
            if head not in best or result.seconds < best[head].seconds:
                best[head] = result
    for process in processes:
        process.terminate()
    return best


def work(head: str, task: HeadTask, requests: Connection) -> None:
    """Run one pass for each request, in a process of a head."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group([0])
    small = HeadTask(512, 64, 64, 32, 32)
    run_pass(head, small, *material(small), group)  # warms up
    tensors = material(task)
    while True:
        requests.recv()
        requests.send(run_pass(head, task, *tensors, group))


def material(task: HeadTask) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [t, 1, h], weight [v, h] and labels [t], identical in every process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(task.tokens, 1, task.hidden, generator=generator)
    weight = torch.randn(task.vocabulary, task.hidden, generator=generator) / task.hidden**0.5
    labels = torch.full((task.tokens,), IGNORED_LABEL)
    chosen = torch.randperm(task.tokens, generator=generator)[: task.loss_tokens]
    labels[chosen] = torch.randint(task.vocabulary, (task.loss_tokens,), generator=generator)
    return hidden, weight, labels


def run_pass(
    head: str, task: HeadTask, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup
) -> HeadPass:
    """Mean loss and its gradients."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    reset_peak()
    before = resident()
    start = time.perf_counter()
    loss = ours(hidden, weight, labels, task.chunk, group) if head == "ours" else plain(hidden, weight, labels)
    grads = list(torch.autograd.grad(loss, (hidden, weight)))
    seconds = time.perf_counter() - start
    additional = peak() - before - weight.numel() * weight.element_size()
    return HeadPass(loss.item(), [grad.numpy() for grad in grads], seconds, additional)


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, group: dist.ProcessGroup) -> Tensor:
    """The loss as the model computes it."""
    positions = torch.nonzero(labels != IGNORED_LABEL)[:, 0]
    rows = select_rows(hidden, positions, group, sequence_parallel=False)
    loss, _ = chunked_cross_entropy(rows, weight, labels[positions], group, chunk)
    return loss / len(positions)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The loss from the logits of all positions."""
    return torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden[:, 0], weight), labels, ignore_index=IGNORED_LABEL
    )


if __name__ == "__main__":
    raise SystemExit(main())
