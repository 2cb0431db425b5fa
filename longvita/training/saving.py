"""When a run saves its checkpoints, and what it does about a save that fails or takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.processes import from_all_ranks
from longvita.training.events import write_event
from longvita.training.pace import Pace
from longvita.training.step import TrainingError

RETRY_SECONDS = (30.0, 60.0, 120.0, 300.0)
"""Time after the first, second ... failed save in a row until the next one; the last for all later ones."""
LAST_RETRY_SECONDS = (2.0, 10.0)
"""The same at the end of a run."""
MIN_LATE_SECONDS = 60.0
"""Shortest time after which a save that is not written counts as late."""


class Saver:
    """Saves the checkpoints of one stage. A failed or late save is reported and tried again while training continues.

    Methods but `is_due` are collectives over the whole world.
    """

    def __init__(
        self, config: Config, checkpointer: Checkpointer, pace: Pace, iteration: int, say: Callable[[str], None]
    ):
        """iteration: the step that the newest checkpoint, or the start, already has. say: prints a line."""
        self._config, self._checkpointer, self._pace, self._say = config, checkpointer, pace, say
        self._settings = config.checkpoint
        self.saved_iteration = iteration
        """Step of the newest checkpoint that is written or being written."""
        self._good_iteration = iteration
        self._tried_at = time.monotonic()
        self._failures = 0
        self._failing_since: float | None = None
        """Time of the first failed or late save since the newest good one."""

    def is_due(self) -> bool:
        """Whether this rank's clock asks for a save: the time between two has passed, or that until the next try."""
        if self._failures and self._checkpointer.is_writing:
            return False
        if self._failures:
            wait = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]
            return time.monotonic() - self._tried_at >= wait
        minutes = self._settings.save_minutes
        return minutes > 0 and time.monotonic() - self._tried_at >= 60 * minutes

    def save(self, state: TrainingState) -> None:
        """Save the state in the background, unless a checkpoint already has it.

        Raises TrainingError after `checkpoint.max_minutes_unsaved` of failed and late saves.
        """
        if state.iteration == self.saved_iteration:
            return
        try:
            self._publish(wait=True, timeout=max(MIN_LATE_SECONDS, 3 * max(self._pace.saves)))
            self._tried_at = time.monotonic()
            if self._checkpointer.is_writing:
                text = f"the checkpoint of step {self.saved_iteration} is still being written"
                self._report("save_late", state.iteration, text)
                self._check_limit(text)
                return
            self.saved_iteration = state.iteration
            self._checkpointer.save(state)
            if not self._settings.asynchronous:
                self._publish(wait=True)
        except CheckpointError as error:
            self._fail(error, state.iteration)

    def poll(self, step: int, wait: bool = False) -> None:
        """Publish a checkpoint that is written, or once it is (`wait`); `step` is the newest one.

        Raises TrainingError as `save`.
        """
        try:
            self._publish(wait)
        except CheckpointError as error:
            self._fail(error, step)

    def finish(self, state: TrainingState) -> None:
        """Save the state and wait for it, with some more tries. Raises TrainingError if all fail."""
        for wait in (*LAST_RETRY_SECONDS, None):
            try:
                self._publish(wait=True)
                if state.iteration != self.saved_iteration:
                    self.saved_iteration = state.iteration
                    self._checkpointer.save(state)
                self._publish(wait=True)
                return
            except CheckpointError as error:
                self._forget(error, state.iteration)
                if wait is None:
                    raise TrainingError(str(error)) from error
                time.sleep(wait)

    def restart_at(self, iteration: int) -> None:
        """Note that the state is now that of an earlier checkpoint."""
        self.saved_iteration = self._good_iteration = iteration

    def _publish(self, wait: bool = False, timeout: float | None = None) -> None:
        if self._checkpointer.poll(wait, timeout) is None:
            return
        self._good_iteration, self._failing_since, self._failures = self.saved_iteration, None, 0
        self._pace.saves.extend(self._checkpointer.seconds)
        if dist.get_rank() == 0:
            self._pace.write()

    def _fail(self, error: CheckpointError, step: int) -> None:
        self._forget(error, step)
        self._check_limit(str(error))

    def _forget(self, error: CheckpointError, step: int) -> None:
        self.saved_iteration = self._good_iteration
        self._failures, self._tried_at = self._failures + 1, time.monotonic()
        self._report("save_failed", step, str(error))

    def _report(self, kind: str, step: int, text: str) -> None:
        if dist.get_rank() == 0:
            write_event(Path(self._config.output), kind, step, problem=text, failures_in_row=self._failures)
            self._say(f"step {step}: {kind.replace('_', ' ')}: {text}")

    def _check_limit(self, text: str) -> None:
        """Raise TrainingError on all ranks if saves have failed or been late for too long."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        oldest = max(from_all_ranks((now - self._failing_since) / 60))
        if oldest > self._settings.max_minutes_unsaved:
            raise TrainingError(
                f"saves have failed for {oldest:.1f} minutes (checkpoint.max_minutes_unsaved is "
                f"{self._settings.max_minutes_unsaved:g}): {text}; fix: free or mount the output folder, and start "
                "the run again"
            )
