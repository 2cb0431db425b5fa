"""The chunked vocabulary-parallel cross-entropy against torch's own, with its gradients, whole and over TP."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from longvita.model.language import chunked_cross_entropy, gathered_logits, select_rows
from tests.distributed.helpers import run_distributed

T, H, V = 24, 8, 40


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(T, 1, H, generator=generator)
    weight = torch.randn(V, H, generator=generator)
    positions = torch.tensor([0, 1, 5, 6, 7, 13, 20, 23])
    targets = torch.tensor([0, 39, 19, 20, 3, 21, 38, 1])
    return hidden, weight, positions, targets


def _reference() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight, positions, targets = _inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = torch.nn.functional.cross_entropy(hidden[positions, 0] @ weight.t(), targets, reduction="sum")
    (2.5 * loss).backward()
    return loss.detach(), hidden.grad, weight.grad


def _parallel(rank: int, size: int, sequence_parallel: bool, chunk: int) -> dict[str, torch.Tensor]:
    hidden, weight, positions, targets = _inputs()
    group = dist.group.WORLD
    if sequence_parallel:
        hidden = hidden.chunk(size)[rank].clone()
    hidden.requires_grad_()
    shard = weight.chunk(size)[rank].clone().requires_grad_()
    rows = select_rows(hidden, positions, group, sequence_parallel)
    loss, losses = chunked_cross_entropy(rows, shard, targets, group, chunk)
    (2.5 * loss).backward()
    logits = gathered_logits(rows.detach(), shard.detach(), group)
    return {"loss": loss.detach(), "losses": losses, "hidden": hidden.grad, "weight": shard.grad, "logits": logits}


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_equals_plain_cross_entropy(size: int, sequence_parallel: bool, chunk: int) -> None:
    loss, hidden_grad, weight_grad = _reference()
    hidden, weight, positions, _ = _inputs()
    results = run_distributed(_parallel, size, sequence_parallel, chunk)
    for result in results:
        torch.testing.assert_close(result["loss"], loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(result["losses"].sum(), loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(result["logits"], hidden[positions, 0] @ weight.t(), rtol=1e-5, atol=1e-5)
    got_hidden = torch.cat([r["hidden"] for r in results]) if sequence_parallel else results[0]["hidden"]
    torch.testing.assert_close(got_hidden, hidden_grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([r["weight"] for r in results]), weight_grad, rtol=1e-5, atol=1e-6)


def _largest_tensor(rank: int, size: int, chunk: int) -> int:
    """Elements of the largest tensor that the head creates on its way forward and back."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Widest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(o))
            return output

    rows = torch.randn(512, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    with Widest():
        loss, _losses = chunked_cross_entropy(rows, weight, torch.arange(512) % V, dist.group.WORLD, chunk)
        loss.backward()
    return max(sizes)


def test_logits_of_all_rows_never_exist() -> None:
    assert run_distributed(_largest_tensor, 1, 32) == [512 * H]
    assert run_distributed(_largest_tensor, 1, 512) == [512 * V]


def _no_rows(rank: int, size: int) -> tuple[float, float, float]:
    hidden = torch.randn(8, 1, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = select_rows(hidden, nothing, dist.group.WORLD, True)
    loss, losses = chunked_cross_entropy(rows, weight, nothing, dist.group.WORLD, 4)
    loss.backward()
    return float(loss), float(hidden.grad.abs().max()), float(weight.grad.abs().max()) + len(losses)


def test_a_batch_without_loss_gives_zero_and_zero_gradients() -> None:
    assert run_distributed(_no_rows, 2) == [(0.0, 0.0, 0.0)] * 2


def _backward_twice(rank: int, size: int) -> str:
    hidden = torch.randn(8, 1, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    loss, _ = chunked_cross_entropy(hidden[:, 0], weight, torch.arange(8), dist.group.WORLD, 4)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up") as error:
        loss.backward()
    return str(error.value)


def test_a_second_backward_pass_is_refused() -> None:
    assert "compute the loss again" in run_distributed(_backward_twice, 1)[0]
