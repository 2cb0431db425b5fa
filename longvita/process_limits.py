"""Limits of a process: those that it sets on itself before it opens untrusted files, and the cores that it may use."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limit_memory(more: int) -> None:
    """Limit this process to `more` bytes in addition to what it has; allocations beyond that raise MemoryError.

    The limit is on private writable memory (RLIMIT_DATA): that of numpy, Pillow and FFmpeg with all their threads, but
    no shared memory, no program code and no reserved address space. The kernel enforces it, so it holds even for an
    allocation that is too fast for a process that polls the size.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    used = int(fields["VmData"].split()[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


@contextlib.contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """Have the kernel end this process by SIGALRM if the block takes longer, whatever code is running."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def available_cores() -> int:
    """Cores that this process may use: by its affinity, which Slurm sets, and by the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, StopIteration):
        own = next(line[3:] for line in OWN_CGROUPS.read_text().splitlines() if line.startswith("0::"))
        folder = CGROUPS / own.lstrip("/")
        quotas = (_quota(one / "cpu.max") for one in (folder, *folder.parents) if one.is_relative_to(CGROUPS))
        cores = min(cores, *quotas)
    return max(1, cores)


def _quota(file: Path) -> int:
    """Cores of a control group, whole ones; very many if it has no limit ("max 100000")."""
    with contextlib.suppress(OSError, ValueError):
        most, period = file.read_text().split()
        return max(1, int(most) // int(period))
    return 1 << 30


def open_more_files() -> None:
    """Raise the limit on open files, usually 1,024, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # A system may refuse even its own hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
