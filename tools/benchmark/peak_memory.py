"""Resident memory of this process and its peak (Linux: man 5 proc_pid_status, proc_pid_clear_refs)."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def resident() -> int:
    """Resident bytes now."""
    return _status("VmRSS")


def peak() -> int:
    """Peak resident bytes since the start of the process or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset `peak` to the present use."""
    Path("/proc/self/clear_refs").write_text("5")


def return_freed_memory() -> None:
    """Let the C library return freed blocks of at least 256 KiB at once (man 3 mallopt).

    Otherwise the process keeps them for an unknown time, and the peak does not reflect the use.
    """
    library = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        library.mallopt(option, 256 * 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024
