"""A view of torch that replaces the accelerator "cuda" by another device: the CPU, or the meta device.

megatron-core hard-codes "cuda": `torch.cuda.current_device()`, `torch.zeros(1, device="cuda")`. Its modules get this
view for their name `torch` (`torch_names.py`), so that torch itself stays unchanged for all other code. Attributes that
the view does not define are torch's. A dry run uses it with the meta device
(longvita/planning/dry_run/meta_patches.py).
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


def without_accelerator(device: Any, other: torch.device = CPU) -> Any:
    """Return `device`, or `other` if it is the accelerator; None stays None."""
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        return other
    if isinstance(device, torch.device) and device.type == "cuda":
        return other
    return device


class CPUStream:
    """A stream of a device that executes operators in order, so that no call has to wait."""

    def __init__(self, device: Any = None, priority: int = 0) -> None: ...

    def wait_stream(self, stream: CPUStream) -> None:
        """Return at once."""

    def wait_event(self, event: CPUEvent) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""

    def record_event(self, event: CPUEvent | None = None) -> CPUEvent:
        """Return an event that is complete."""
        return event or CPUEvent()


class CPUEvent:
    """An event of a CPUStream, complete as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None: ...

    def record(self, stream: CPUStream | None = None) -> None:
        """Return at once."""

    def wait(self, stream: CPUStream | None = None) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: the event is always complete."""
        return True


class Nvtx:
    """Profiler ranges, which do not exist on the CPU."""

    def range_push(self, message: str) -> None:
        """Do nothing."""

    def range_pop(self) -> None:
        """Do nothing."""


class Accelerator:
    """`torch.cuda` in the view: one device, with torch's default generator."""

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
        """Do nothing: there is only one device."""

    def device_count(self) -> int:
        """One."""
        return 1

    def synchronize(self, device: Any = None) -> None:
        """Return at once: CPU operators are synchronous."""

    def current_stream(self, device: Any = None) -> CPUStream:
        """The one stream."""
        return CPUStream()

    def default_stream(self, device: Any = None) -> CPUStream:
        """The one stream."""
        return CPUStream()

    def stream(self, stream: CPUStream) -> contextlib.AbstractContextManager:
        """Return a context that does nothing: there is only one stream."""
        return contextlib.nullcontext()

    def is_current_stream_capturing(self) -> bool:
        """Return False: the CPU captures no graphs."""
        return False

    def empty_cache(self) -> None:
        """Do nothing: torch does not cache CPU memory."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """State of the default generator."""
        return torch.default_generator.get_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
        """Set the state of the default generator."""
        torch.default_generator.set_state(new_state)

    def manual_seed(self, seed: int) -> None:
        """Seed the default generator (torch.manual_seed would call this function again)."""
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def memory_allocated(self, device: Any = None) -> int:
        """Return 0: torch does not count CPU memory; `Platform.memory` does."""
        return 0

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated


def _factory(name: str, place: torch.device) -> Any:
    factory = getattr(torch, name)

    @functools.wraps(factory)
    def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return factory(*args, device=without_accelerator(device, place), **kwargs)

    return make


class TorchView(ModuleType):
    """torch, with `Accelerator` as `torch.cuda` and factories that create tensors on `device`.

    The factories ignore `pin_memory`, which torch refuses without an accelerator.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__("torch")
        self.cuda = Accelerator(device)
        for name in FACTORIES:
            setattr(self, name, _factory(name, device))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
