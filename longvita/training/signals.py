"""Stopping early: SIGTERM, SIGINT or a time limit save a checkpoint and end the run with a known exit code.

A run that ended with EXIT_SIGTERM, EXIT_SIGINT or EXIT_TIME_LIMIT (longvita.processes) resumes when it is started
again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

from longvita.processes import EXIT_COMPLETE, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT

if TYPE_CHECKING:
    import torch


class StopReason(IntEnum):
    """Why a run stops; of several reasons on several ranks the highest wins."""

    NONE = 0
    TIME_LIMIT = 1
    SIGINT = 2
    SIGTERM = 3

    @property
    def exit_code(self) -> int:
        """The process's exit code."""
        return (EXIT_COMPLETE, EXIT_TIME_LIMIT, EXIT_SIGINT, EXIT_SIGTERM)[self]


class StopRequests:
    """Records requests to stop, and agrees on them with the other ranks between steps.

    Use as a context manager, which installs handlers of SIGTERM and SIGINT. If the ranks have agreed to stop, both
    signals are ignored afterwards: `srun -K1` sends SIGTERM to all ranks as soon as the first one has ended with a code
    other than 0, and the others must still end with the same code. (Python resets other handlers to the default while
    it exits, and leaves ignored signals ignored.)
    """

    def __init__(self, time_limit_minutes: float | None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._deadline = None if time_limit_minutes is None else clock() + 60 * time_limit_minutes
        self._signal = StopReason.NONE
        self._agreed = StopReason.NONE
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if self._agreed is StopReason.NONE else signal.SIG_IGN)
        self._previous.clear()

    def _record(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: launchers and terminals often send two.
        reason = StopReason.SIGTERM if number == signal.SIGTERM else StopReason.SIGINT
        self._signal = max(self._signal, reason)

    @property
    def requested(self) -> StopReason:
        """The stop requested of this rank, NONE without any."""
        if self._signal != StopReason.NONE:
            return self._signal
        if self._deadline is not None and self._clock() >= self._deadline:
            return StopReason.TIME_LIMIT
        return StopReason.NONE

    def agree(self, device: torch.device) -> StopReason:
        """The highest of all ranks' requests, identical on every rank. A collective over the whole world."""
        # Not at the top: the command that starts the processes only reads the exit codes.
        import torch
        import torch.distributed as dist

        highest = torch.tensor(int(self.requested), dtype=torch.int32, device=device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        self._agreed = StopReason(int(highest))
        return self._agreed
