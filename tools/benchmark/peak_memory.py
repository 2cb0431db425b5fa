"""Resident memory of this process and its peak (Linux: man 5 proc_pid_status, proc_pid_clear_refs)."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def resident() -> int:
    """Bytes now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes since the process began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Has `peak` start again from what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def return_freed_memory() -> None:
    """Has the C library give freed blocks of 256 KiB and more back at once (man 3 mallopt).

    Else they stay with the process for as long as it sees fit, and the peak tells more of that than of use.
    """
    library = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        library.mallopt(option, 256 * 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024
