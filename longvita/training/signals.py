"""Stopping early: SIGTERM, SIGINT or a time limit save a checkpoint and end the run with a known exit code.

SIGUSR1 saves a checkpoint without an end. A run that ended with EXIT_SIGTERM, EXIT_SIGINT or EXIT_TIME_LIMIT
(longvita.processes) resumes when it is started again.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Agreement:
    """What all ranks do after a step."""

    stop: StopReason
    save: bool
    """Whether a checkpoint is saved, without a stop."""


class RunRequests:
    """Records requests to stop or to save, and agrees on them with the other ranks between steps.

    Use as a context manager, which installs handlers of SIGTERM, SIGINT and SIGUSR1. If the ranks have agreed to stop,
    the first two are ignored afterwards: `srun -K1` sends SIGTERM to all ranks as soon as the first one has ended with
    a code other than 0, and the others must still end with the same code. (Python resets other handlers to the default
    while it exits, and leaves ignored signals ignored.)
    """

    def __init__(self, limits: Iterable[float | None] = (), clock: Callable[[], float] = time.monotonic):
        """limits: seconds from now after which the run must have stopped; the shortest counts."""
        self._clock = clock
        self._deadline = clock() + min((limit for limit in limits if limit is not None), default=math.inf)
        self._signal = StopReason.NONE
        self._save = False
        self._agreed = StopReason.NONE
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> RunRequests:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._record)
        self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._record_save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            ignored = number != signal.SIGUSR1 and self._agreed is not StopReason.NONE
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        self._previous.clear()

    def _record(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: launchers and terminals often send two.
        reason = StopReason.SIGTERM if number == signal.SIGTERM else StopReason.SIGINT
        self._signal = max(self._signal, reason)

    def _record_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def requested(self, needed: float = 0.0) -> StopReason:
        """The stop requested of this rank, NONE without any.

        needed: seconds that the next step and the save after it take; with less time left the limit counts as reached.
        """
        if self._signal != StopReason.NONE:
            return self._signal
        return StopReason.TIME_LIMIT if self._clock() + needed >= self._deadline else StopReason.NONE

    def agree(self, device: torch.device, needed: float = 0.0, save_due: bool = False) -> Agreement:
        """The highest of all ranks' stops, and whether one of them wants to save; identical on every rank.

        needed: as for `requested`. save_due: whether a save is due by this rank's clock. A collective over the whole
        world.
        """
        # Not at the top: the command that starts the processes only reads the exit codes.
        import torch
        import torch.distributed as dist

        asked, self._save = self._save, False
        wishes = [int(self.requested(needed)), int(asked or save_due)]
        highest = torch.tensor(wishes, dtype=torch.int32, device=device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        stop, save = highest.tolist()
        self._agreed = StopReason(stop)
        return Agreement(self._agreed, bool(save))
