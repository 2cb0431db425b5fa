"""Limits that a process puts on itself before it opens files that may be made to harm it."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator


def limit_memory(more: int) -> None:
    """Lets this process allocate `more` bytes beside what it has; an allocation beyond that fails with MemoryError.

    The limit is on writable memory of the process's own (RLIMIT_DATA): that of numpy, Pillow and FFmpeg with all their
    threads, but no shared memory, no program code and no address space that is only reserved. The kernel refuses what
    goes beyond, so nothing can be faster than a look at a process's size would be.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    used = int(fields["VmData"].split()[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


@contextlib.contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """Where it takes longer, the kernel ends this process by SIGALRM, whatever code it is in."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def open_more_files() -> None:
    """Lets this process have as many files open as it may; usual are 1,024 where it may many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # What a system gives as the most it may still refuse.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
