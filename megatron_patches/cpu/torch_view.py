"""A view of torch in which the accelerator that megatron-core asks for is another device: the CPU, or none at all.

megatron-core names "cuda" in place: `torch.cuda.current_device()`, `torch.zeros(1, device="cuda")`. Its modules get
this view for their name `torch` (`torch_names.py`), so torch itself stays as it is for everybody else. What the view
does not answer comes from torch. A dry run uses it with the meta device (longvita/planning/dry_run/meta_patches.py).
"""

from __future__ import annotations

import contextlib
import functools
from types import ModuleType
from typing import Any

import torch

CPU = torch.device("cpu")

FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)


def in_its_place(device: Any, other: torch.device = CPU) -> Any:
    """`device`, or `other` where it names the accelerator; None stays None."""
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        return other
    if isinstance(device, torch.device) and device.type == "cuda":
        return other
    return device


class CPUStream:
    """A stream of a device that does one thing after the other: there is nothing to wait for."""

    def __init__(self, device: Any = None, priority: int = 0) -> None: ...

    def wait_stream(self, stream: CPUStream) -> None:
        """Returns at once."""

    def wait_event(self, event: CPUEvent) -> None:
        """Returns at once."""

    def synchronize(self) -> None:
        """Returns at once."""

    def record_event(self, event: CPUEvent | None = None) -> CPUEvent:
        """An event that is over already."""
        return event or CPUEvent()


class CPUEvent:
    """An event of such a stream: over as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None: ...

    def record(self, stream: CPUStream | None = None) -> None:
        """Returns at once."""

    def wait(self, stream: CPUStream | None = None) -> None:
        """Returns at once."""

    def synchronize(self) -> None:
        """Returns at once."""

    def query(self) -> bool:
        """Always over."""
        return True


class Nvtx:
    """Profiler ranges, which the CPU does not have."""

    def range_push(self, message: str) -> None:
        """Does nothing."""

    def range_pop(self) -> None:
        """Does nothing."""


class Accelerator:
    """What `torch.cuda` answers in the view: one device, whose generator is torch's default one."""

    Stream = CPUStream
    Event = CPUEvent
    FloatTensor = torch.FloatTensor
    LongTensor = torch.LongTensor
    IntTensor = torch.IntTensor
    nvtx = Nvtx()

    def __init__(self, device: torch.device = CPU) -> None:
        self._device = device

    @property
    def random(self) -> Accelerator:
        """`torch.cuda.random` has the same generator functions."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        """The one device."""
        return self._device

    def set_device(self, device: Any) -> None:
        """There is one device only."""

    def device_count(self) -> int:
        """One."""
        return 1

    def synchronize(self, device: Any = None) -> None:
        """CPU operators are over when they return."""

    def current_stream(self, device: Any = None) -> CPUStream:
        """The one stream."""
        return CPUStream()

    def default_stream(self, device: Any = None) -> CPUStream:
        """The one stream."""
        return CPUStream()

    def stream(self, stream: CPUStream) -> contextlib.AbstractContextManager:
        """There is no other stream to change to."""
        return contextlib.nullcontext()

    def is_current_stream_capturing(self) -> bool:
        """The CPU captures no graphs."""
        return False

    def empty_cache(self) -> None:
        """Torch keeps no cache of CPU memory."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """State of the default generator."""
        return torch.default_generator.get_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
        """Sets the state of the default generator."""
        torch.default_generator.set_state(new_state)

    def manual_seed(self, seed: int) -> None:
        """Seeds the default generator (torch.manual_seed would call this function again)."""
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def memory_allocated(self, device: Any = None) -> int:
        """0: torch does not count CPU memory; `Platform.memory` does."""
        return 0

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated


def _factory(name: str, place: torch.device) -> Any:
    factory = getattr(torch, name)

    @functools.wraps(factory)
    def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return factory(*args, device=in_its_place(device, place), **kwargs)

    return make


class TorchView(ModuleType):
    """torch, with `torch.cuda` answered by `Accelerator` and factories that make their tensors on `device`.

    The factories drop `pin_memory`, which torch refuses where there is no accelerator.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__("torch")
        self.cuda = Accelerator(device)
        for name in FACTORIES:
            setattr(self, name, _factory(name, device))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
