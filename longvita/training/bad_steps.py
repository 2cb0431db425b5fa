"""What a run does with a step whose gradients cannot be used, by training.bad_steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from longvita.checkpoint.training_state import TrainingState
from longvita.data.loader import Loader
from longvita.processes import from_all_ranks
from longvita.training.events import write_event
from longvita.training.gradient_watch import GradientWatch
from longvita.training.step import StepFigures


class BadSteps:
    """Judges each step of a run, and records the bad ones. Methods are called on all ranks together."""

    def __init__(self, state: TrainingState, loader: Loader, say: Callable[[str], None]):
        """loader: reads the state's batches. say: prints a line."""
        self._state, self._loader, self._say = state, loader, say
        self._settings = state.config.training.bad_steps
        self.action: Literal["skip", "roll_back", "stop"] | None = None
        """What is to be done about the newest step, whose gradients are not applied; None for a good step."""
        self.stop_text = ""
        """The error of a step that ends the run."""
        self._watch = GradientWatch(state.chunks)

    def accept(self, figures: StepFigures) -> bool:
        """Whether a step's gradients are applied; sets `action`."""
        history, settings = self._state.history, self._settings
        problem = history.problem(figures.losses.loss, figures.grad_norm, settings.spike_factor, settings.spike_window)
        self.action = None
        if problem is None:
            if figures.losses.loss_tokens:
                history.add_good(figures.grad_norm, settings.spike_window, self._state.consumed_sequences)
            return True
        history.add_bad(self._state.consumed_sequences)
        too_many = history.bad_in_row > settings.max_in_row or history.bad_steps > settings.max_total
        self.action = "stop" if too_many else settings.policy
        self.stop_text = self._stop_text(problem)
        self._report(problem, figures)
        return False

    def _report(self, problem: str, figures: StepFigures) -> None:
        """Name the ranks and parameters with gradients that are not finite, and the samples of the batch."""
        found = from_all_ranks(self._watch.first_not_finite())
        if dist.get_rank() != 0:
            return
        state, step = self._state, self._state.iteration + 1
        not_finite = {str(rank): name for rank, name in enumerate(found) if name is not None}
        write_event(
            Path(state.config.output),
            "bad_step",
            step,
            problem=problem,
            action=self.action,
            loss=repr(figures.losses.loss),
            grad_norm=repr(figures.grad_norm),
            first_not_finite=not_finite,
            samples=self._loader.samples_of(state.consumed_sequences, state.config.training.global_batch_size),
        )
        where = "".join(f"; rank {rank}: {name}" for rank, name in list(not_finite.items())[:1])
        self._say(f"step {step} is bad: {problem}{where}; {self.action}")

    def _stop_text(self, problem: str) -> str:
        history, settings = self._state.history, self._settings
        return (
            f"step {self._state.iteration + 1} is bad: {problem}. It is bad step {history.bad_in_row} in a row and "
            f"{history.bad_steps} of the stage; training.bad_steps has policy {settings.policy}, max_in_row "
            f"{settings.max_in_row}, max_total {settings.max_total}. Its gradients are not applied, and the next start "
            "continues with the step after it; fix: look at its samples in events.jsonl, lower optimizer.lr or "
            "optimizer.clip_grad, or raise the limits"
        )
