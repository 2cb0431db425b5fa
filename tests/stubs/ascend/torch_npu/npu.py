"""torch.npu: one device, the CPU, with the names and signatures of torch_npu 2.13.0's npu module that are used."""

from __future__ import annotations

from typing import Any

import torch

FREE, TOTAL = 60 * 2**30, 64 * 2**30
ALLOCATED, PEAK = 3 * 2**30, 5 * 2**30
"""Figures of a device that is not there, for the tests that read them, bytes."""
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
    """Number of the chosen device."""
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
    """A queue of the device; the CPU does one thing after the other."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        if kwargs:
            raise TypeError(f"unknown arguments {sorted(kwargs)}")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        """Back to the queue before it."""

    def wait_stream(self, stream: Stream) -> None:
        """Waits for another queue."""

    def wait_event(self, event: Event) -> None:
        """Waits for an event."""

    def synchronize(self) -> None:
        """Waits for what is in it."""


class Event:
    """A point in a queue."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None: ...

    def record(self, stream: Stream | None = None) -> None:
        """Marks the point."""

    def synchronize(self) -> None:
        """Waits for it."""


def stream(stream: Stream) -> Stream:
    """Context in which work goes to a queue."""
    return stream


def current_stream(device: Any = None) -> Stream:
    """The queue that work goes to."""
    return Stream()


class device:
    """Context in which another device is chosen."""

    def __init__(self, device: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


def _lazy_call(callable: Any, **kwargs: Any) -> None:
    """Calls it once there is a device, which there is."""
    callable()


class _Generators:
    """One for each device, whose number the CPU does not have."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


default_generators = _Generators()


class mstx:
    """Marks for the profiler, which there is none of."""

    @staticmethod
    def range_start(message: str, stream: Any = None, domain: str = "default") -> int:
        """A range begins; its number."""
        return 0

    @staticmethod
    def range_end(range_id: int, domain: str = "default") -> None:
        """A range ends."""
