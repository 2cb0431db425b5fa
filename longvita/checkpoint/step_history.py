"""What a run remembers of its earlier steps: gradient norms, and the steps whose gradients were not applied."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StepHistory:
    """Saved in checkpoints, identical on every rank."""

    norms: deque[float] = field(default_factory=deque)
    """Gradient norms of the newest steps that were applied, oldest first; at most training.bad_steps.spike_window."""
    bad_in_row: int = 0
    """Bad steps since the newest step that was applied, apart from steps that a roll back repeats."""
    bad_up_to: int = -1
    """First sequence of the furthest global batch of a bad step."""
    bad_steps: int = 0
    """All bad steps of the stage."""
    passed_over: set[int] = field(default_factory=set)
    """First sequences of the global batches that are not trained on since a step on them was rolled back."""

    def problem(self, loss: float, norm: float, spike_factor: float | None, window: int) -> str | None:
        """Why a step with this loss and gradient norm is bad; None for a good one."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if spike_factor is None or len(self.norms) < window // 8:
            return None
        median = statistics.median(self.norms)
        if norm <= spike_factor * median:
            return None
        return (
            f"the gradient norm {norm:.4g} is more than {spike_factor:g} times {median:.4g}, "
            f"the median of the last {len(self.norms)} steps"
        )

    def add_good(self, norm: float, window: int, sequence: int) -> None:
        """Record a step that was applied, on the global batch whose first sequence is `sequence`."""
        if sequence > self.bad_up_to:
            self.bad_in_row = 0
        self.norms.append(norm)
        while len(self.norms) > window:
            self.norms.popleft()

    def add_bad(self, sequence: int) -> None:
        """Record a step that was not applied; `sequence` as for `add_good`."""
        self.bad_in_row += 1
        self.bad_steps += 1
        self.bad_up_to = max(self.bad_up_to, sequence)

    def after_roll_back(self, sequence: int, restored: StepHistory) -> StepHistory:
        """The history after the checkpoint with the history `restored` was loaded.

        The global batch whose first sequence is `sequence` is passed over from now on. Bad steps of the steps that are
        rolled back count further, so that the limits hold.
        """
        passed_over = self.passed_over | restored.passed_over | {sequence}
        return dataclasses.replace(
            restored,
            bad_in_row=self.bad_in_row,
            bad_steps=self.bad_steps,
            bad_up_to=self.bad_up_to,
            passed_over=passed_over,
        )

    def to_facts(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return vars(self) | {"norms": list(self.norms), "passed_over": sorted(self.passed_over)}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> StepHistory:
        """Restore what `to_facts` returned."""
        return cls(**facts | {"norms": deque(facts["norms"]), "passed_over": set(facts["passed_over"])})
