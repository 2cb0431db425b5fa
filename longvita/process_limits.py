"""Limits that a process sets on itself before it opens untrusted files."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator


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


def open_more_files() -> None:
    """Raise the limit on open files, usually 1,024, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # A system may refuse even its own hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
