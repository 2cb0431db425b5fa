"""Resident memory of this process and its peak (Linux: man 5 proc_pid_status, proc_pid_clear_refs)."""

from __future__ import annotations

from pathlib import Path


def resident() -> int:
    """Bytes now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes since the process began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Has `peak` start again from what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024
