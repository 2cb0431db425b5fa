"""On a real GPU: kernels, layers, memory and losses. Deselected by default; `pytest -m gpu` on a machine that has one.

None of this has been run yet: docs/hardware.md.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.helpers import run_distributed

pytestmark = pytest.mark.gpu
HEADS, GROUPS, DIM, SCALE = 8, 2, 64, 0.125
BOUNDS = [0, 33, 34, 160, 512]
LOSS_TOLERANCE = 0.02
"""Of bf16 against fp32, relative."""


def kernels() -> list[Any]:
    from longvita.platforms.base import importable
    from longvita.platforms.cuda.flash_kernels import FlashAttnKernel, TorchFlashKernel
    from longvita.platforms.cuda.requirements import FLASH_ATTN

    return [TorchFlashKernel(), *([FlashAttnKernel()] if importable(FLASH_ATTN) else [])]


def test_flash_kernels_equal_plain_products() -> None:
    from longvita.platforms.cuda import flash_kernels

    generator = torch.Generator("cuda").manual_seed(1)
    shapes = (HEADS, HEADS, GROUPS, GROUPS)
    grad, q, k, v = (torch.randn(BOUNDS[-1], n, DIM, device="cuda", generator=generator) for n in shapes)
    out, lse = flash_kernels.plain_forward(q, k, v, BOUNDS, BOUNDS, True, SCALE)
    wanted = flash_kernels.plain_backward((grad, q, k, v, out, lse), BOUNDS, BOUNDS, True, SCALE)
    for kernel in kernels():
        halves = [x.bfloat16() for x in (q, k, v)]
        found, found_lse = kernel.causal_forward(*halves, BOUNDS, SCALE)
        gradients = kernel.causal_backward(grad, *halves, found, found_lse, BOUNDS, SCALE)
        for one, other in zip((out, lse, *wanted), (found, found_lse, *gradients), strict=True):
            assert float((one - other.float()).abs().max() / one.abs().max()) < 0.03, type(kernel)


def test_a_tensor_comes_back_from_pinned_memory() -> None:
    from longvita.platforms import get

    tensor = torch.randn(1000, 100, device="cuda")
    offloaded = get("cuda").offload(tensor)
    offloaded.start()
    assert torch.equal(offloaded.fetch(), tensor)


def test_memory_follows_the_allocator() -> None:
    from longvita.platforms import get

    platform = get("cuda")
    before = platform.memory()
    held = torch.empty(2**26, dtype=torch.uint8, device="cuda")
    after = platform.memory()
    assert after["used"] - before["used"] >= held.nbytes and after["peak"] >= after["used"]
    assert 0 < after["free"] < after["total"] and platform.peak_flops(torch.bfloat16) > 1e13


def losses(rank: int, size: int, name: str, sections: dict[str, Any]) -> list[float]:
    """Losses of two optimizer steps on the mixed packed batch."""
    from longvita.platforms import get
    from longvita.training.state import build_state
    from longvita.training.step import train_step
    from tests.distributed.mixed_batch import micro_batches, tiny_config

    platform = get(name)
    platform.activate()
    platform.set_device(rank)
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group(platform.backend, init_method="env://", rank=rank, world_size=size)
    config = tiny_config(**sections, optimizer={"adam_eps": 1e-2})
    groups = platform.build_groups(config)
    state = build_state(config, groups, platform)
    found = []
    for seed in range(2):
        batches = micro_batches(config, groups, seed)
        found.append(train_step(state, batches, len(batches)).losses.loss)
    return found


# The tiny model has heads of size 8, the minimum of flash kernels.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one GPU": (1, {}),
    "TP2+SP": (2, {"layout": {"tensor_parallel": 2, "sequence_parallel": True}}),
    "CP2, ring": (2, {"layout": {"context_parallel": 2, "ulysses": 1}}),
    "CP2, Ulysses": (2, {"layout": {"context_parallel": 2, "ulysses": 2}}),
    # All-gather if the GPU's kernels support it, else a ring (te_layers.method_of).
    "CP2, one group": (2, {"model": {"language": {"num_query_groups": 1}}, "layout": {"context_parallel": 2}}),
    "CP4, ring of Ulysses": (4, {"layout": {"context_parallel": 4, "ulysses": 2}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_the_cpu(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, sections = LAYOUTS[layout]
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs, there are {torch.cuda.device_count()}")
    from tests.distributed.helpers import free_port

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    bf16 = {**sections, "training": {"precision": "bf16"}}
    model = {"model": sections["model"]} if "model" in sections else {}
    wanted = run_distributed(losses, 1, "cpu", model, fresh=True)[0]
    for found in run_distributed(losses, size, "cuda", bf16, fresh=True):
        assert found == pytest.approx(wanted, rel=LOSS_TOLERANCE)
