"""Stopping early: SIGTERM, SIGINT or a time limit save a checkpoint and end the run with a known exit code.

`longvita.processes` has the exit codes. A run that ended with one of these resumes when it is started again.
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
        return {
            StopReason.NONE: EXIT_COMPLETE,
            StopReason.TIME_LIMIT: EXIT_TIME_LIMIT,
            StopReason.SIGINT: EXIT_SIGINT,
            StopReason.SIGTERM: EXIT_SIGTERM,
        }[self]


class StopWatch:
    """Notes requests to stop, and agrees on them with the other ranks between steps.

    Use as a context manager: it holds the handlers of SIGTERM and SIGINT inside. When the ranks have agreed to stop,
    both are ignored after it. `srun -K1` sends SIGTERM to all ranks as soon as the first one has ended with a code
    other than 0: the others, a moment later, shall end with the same code. (Python puts other handlers back to the
    default while it ends, and leaves ignored signals ignored.)
    """

    def __init__(self, time_limit_minutes: float | None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._deadline = None if time_limit_minutes is None else clock() + 60 * time_limit_minutes
        self._signal = StopReason.NONE
        self._agreed = StopReason.NONE
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopWatch:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if self._agreed is StopReason.NONE else signal.SIG_IGN)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: launchers and terminals often send two.
        reason = StopReason.SIGTERM if number == signal.SIGTERM else StopReason.SIGINT
        self._signal = max(self._signal, reason)

    @property
    def wish(self) -> StopReason:
        """What this rank alone would do."""
        if self._signal != StopReason.NONE:
            return self._signal
        if self._deadline is not None and self._clock() >= self._deadline:
            return StopReason.TIME_LIMIT
        return StopReason.NONE

    def agree(self, device: torch.device) -> StopReason:
        """The same answer on every rank: the highest of all ranks' wishes. A collective over the whole world."""
        # Not at the top: the command that starts the processes reads the exit codes alone.
        import torch
        import torch.distributed as dist

        wish = torch.tensor(int(self.wish), dtype=torch.int32, device=device)
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        self._agreed = StopReason(int(wish))
        return self._agreed
