"""torch.npu: one device, the CPU, with the names and signatures of torch_npu 2.13.0's npu module that are used."""

from __future__ import annotations

from typing import Any

import torch

FREE, TOTAL = 60 * 2**30, 64 * 2**30
ALLOCATED, PEAK = 3 * 2**30, 5 * 2**30
"""Memory of the imaginary device in bytes, for tests."""
VISIBLE = 8
_chosen = 0


def is_available() -> bool:
    """Whether there is a device."""
    return True


def device_count() -> int:
    """Devices of the machine."""
    return VISIBLE


def set_device(device: Any) -> None:
    """Chooses a device; real ones have the numbers below device_count()."""
    global _chosen
    if not 0 <= int(device) < VISIBLE:
        raise RuntimeError(f"invalid device ordinal {device}")
    _chosen = int(device)


def current_device() -> int:
    """Number of the selected device."""
    return _chosen


def synchronize(device: Any = None) -> None:
    """Waits for the device."""


def get_device_name(device_name: Any = None) -> str:
    """Name of the chip."""
    return "Ascend910B3"


def memory_allocated(device: Any = None) -> int:
    """Bytes of tensors."""
    return ALLOCATED


def max_memory_allocated(device: Any = None) -> int:
    """Most bytes of tensors so far."""
    return PEAK


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free bytes and all bytes of the device."""
    return FREE, TOTAL


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    """State of the device's generator."""
    return torch.default_generator.get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "npu") -> None:
    """Sets the state of the device's generator."""
    torch.default_generator.set_state(new_state)


class Stream:
    """A stream of the device; the CPU executes operators in order."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        if kwargs:
            raise TypeError(f"unknown arguments {sorted(kwargs)}")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        """Return to the previous stream."""

    def wait_stream(self, stream: Stream) -> None:
        """Wait for another stream."""

    def wait_event(self, event: Event) -> None:
        """Waits for an event."""

    def synchronize(self) -> None:
        """Wait for its operators."""


class Event:
    """A point in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None: ...

    def record(self, stream: Stream | None = None) -> None:
        """Record the point."""

    def synchronize(self) -> None:
        """Waits for it."""


def stream(stream: Stream) -> Stream:
    """Context in which operators use a stream."""
    return stream


def current_stream(device: Any = None) -> Stream:
    """The current stream."""
    return Stream()


class device:
    """Context in which another device is selected."""

    def __init__(self, device: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


def _lazy_call(callable: Any, **kwargs: Any) -> None:
    """Call it at once."""
    callable()


class _Generators:
    """The default generator for each device number."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


default_generators = _Generators()


class mstx:
    """Ranges for the profiler, which does not exist here."""

    @staticmethod
    def range_start(message: str, stream: Any = None, domain: str = "default") -> int:
        """Start a range and return its number."""
        return 0

    @staticmethod
    def range_end(range_id: int, domain: str = "default") -> None:
        """End a range."""
