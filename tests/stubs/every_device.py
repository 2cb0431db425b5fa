"""A process in which every device is the CPU, for MindSpeed's own source, which hard-codes its device."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_patches.cpu.torch_view import Accelerator

ELSEWHERE = ("cuda", "npu")
ANSWERED = (
    "current_device",
    "set_device",
    "device_count",
    "synchronize",
    "current_stream",
    "default_stream",
    "stream",
    "Stream",
    "Event",
    "get_rng_state",
    "set_rng_state",
    "manual_seed",
    "manual_seed_all",
    "memory_allocated",
    "is_current_stream_capturing",
    "FloatTensor",
    "LongTensor",
    "IntTensor",
)


class _OnTheCPU(TorchFunctionMode):
    """Replaces devices in the arguments of torch's functions by the CPU, and ignores pinned memory.

    The names of tensors' types remain those of the device: MindSpeed replaces "npu" in them by "cuda", which
    megatron-core's optimizers check.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {name: _here(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        if type(kwargs.get("device")) is int:  # the number of a device
            kwargs["device"] = "cpu"
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(_here(value) for value in args)
        found = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "type" and isinstance(found, str):
            return found.replace("torch.", "torch.npu.", 1)
        return found


def _here(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] in ELSEWHERE:
        return "cpu"
    if isinstance(value, torch.device) and value.type in ELSEWHERE:
        return torch.device("cpu")
    return value


@functools.cache
def make_every_device_the_cpu() -> None:
    """Cannot be undone: use it in a process of its own. A second call does nothing."""
    answers = Accelerator()
    for name in ANSWERED:
        setattr(torch.cuda, name, getattr(answers, name))
    torch.Tensor.npu = lambda self, *args, **kwargs: self  # type: ignore[attr-defined]
    _OnTheCPU().__enter__()
