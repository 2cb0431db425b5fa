"""A training run in one process: from its config to its exit code."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import RenderableType

from longvita import platforms, processes
from longvita.checkpoint.load import load_state
from longvita.checkpoint.resume import resume_point
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.step_folders import checkpoint_root
from longvita.config import check_world_size
from longvita.config.schema import Config
from longvita.data.loader import Loader, LoaderRanks, build_loader
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.training.bad_steps import BadSteps
from longvita.training.metrics import open_metrics
from longvita.training.pace import NEWEST, Pace
from longvita.training.run_report import data_change_text, decode_failures_text, finish_report, start_text
from longvita.training.saving import Saver
from longvita.training.signals import Agreement, RunRequests, StopReason
from longvita.training.state import start_or_resume
from longvita.training.step import TimedBatches, TrainingError, pass_over_step, train_step
from longvita.training.validation import check_held_out, held_out_losses
from longvita.training.watchdog import Watchdog

MAX_DATA_TRIES = 4
"""Times that a sample may reach its time limit before its batch is there: once, and after each read error."""


def train(stages: Sequence[Config], accounting_table: Callable[[dict[str, Any]], RenderableType]) -> int:
    """Run or resume the training stages that the configs describe; the exit code (see longvita.training.signals).

    Every process of the run calls it; they find each other through the launcher's variables. A stage resumes from the
    newest intact checkpoint in its output folder, or starts from the weights that its checkpoint section names. All
    stages run on the first one's platform; a stage that is stopped is the last.

    accounting_table: makes what a stage prints at its end of the content of its sample_accounting.json.
    """
    platform = platforms.get(stages[0].platform)
    platform.activate()
    _, world = processes.init_distributed(platform.backend, platform.set_device)
    code = 0
    for config in stages:
        check_world_size(config, world)
        minutes = config.training.time_limit_minutes
        limits = [None if minutes is None else 60 * minutes, processes.seconds_left_of_job()]
        with RunRequests(limits) as requests:
            groups = platform.build_groups(config)
            code = TrainingRun(config, groups, platform, requests).run(accounting_table)
        # Only after success: after an error the other ranks may be anywhere, and an orderly exit could wait for them.
        groups.destroy()
        if code != 0:
            break
    return code


class TrainingRun:
    """One stage: its steps, evaluations, checkpoints and reports. All ranks call its methods together."""

    def __init__(self, config: Config, groups: ParallelGroups, platform: Platform, requests: RunRequests):
        """Build the state that the stage starts from: its newest intact checkpoint, or its initial weights."""
        self.config, self.groups, self.platform, self.requests = config, groups, platform, requests
        root = checkpoint_root(Path(config.output))
        self.checkpointer = Checkpointer(root, config.checkpoint.keep, platform)
        self.resumed = resume_point(root)
        self.state = start_or_resume(config, groups, platform, self.resumed)
        self.pace = Pace(Path(config.output))
        self.metrics = open_metrics(config, platform, self.state.iteration)
        self.saver = Saver(config, self.checkpointer, self.pace, self.state.iteration, self.metrics.say)
        self.watchdog = Watchdog(config.training.watch, Path(config.output), dist.get_rank())
        self.known_steps: deque[float] = deque(maxlen=NEWEST)
        """Seconds of the newest steps of this process on its current loader."""
        self.loader: Loader | None = None

    def run(self, accounting_table: Callable[[dict[str, Any]], RenderableType]) -> int:
        """Train until all steps are done or a stop is requested, save, and write the report; the exit code.

        Raises TrainingError when a step or the saving of a checkpoint fails.
        """
        with self.metrics, self.watchdog:
            reason = self._train()
            self._save_last()
        if dist.get_rank() == 0:
            finish_report(self.state, reason, self.loader, self.metrics, accounting_table)
        dist.barrier()
        return reason.exit_code

    def _train(self) -> StopReason:
        state, total = self.state, self.config.training.train_iterations
        self.metrics.say(start_text(state, self.resumed))
        while state.iteration < total:
            self._phase("open data")
            self.loader = self._open_data()
            with contextlib.closing(self.loader):
                end = self._train_on(self.loader)
            if isinstance(end, StopReason):
                return end
            self._roll_back(end)
        return StopReason.NONE

    def _train_on(self, loader: Loader) -> StopReason | Path:
        """Train on the loader's batches until the last step, a requested stop, or the checkpoint to roll back to.

        Raises TrainingError after a bad step that ends the run; the state is saved then.
        """
        state, total = self.state, self.config.training.train_iterations
        self.known_steps.clear()
        batches, bad_steps = TimedBatches(loader, self._step_phase), BadSteps(state, loader, self.metrics.say)
        while state.iteration < total:
            self._step(batches, bad_steps)
            if bad_steps.action == "stop":
                self._save_last()
                raise TrainingError(bad_steps.stop_text)
            if bad_steps.action == "roll_back" and (checkpoint := self._newest_checkpoint()) is not None:
                return checkpoint
            agreed = self._agree()
            if agreed.stop is not StopReason.NONE and state.iteration < total:
                return agreed.stop
            self.saver.poll(state.iteration)
            if agreed.save or _is_due(self.config.checkpoint.save_interval, state.iteration):
                self._phase("save", max(self.pace.saves))
                self._count_samples()
                self.saver.save(state)
            if self._validation_is_due(state.iteration):
                self._validate()
        return StopReason.NONE

    def _step(self, batches: TimedBatches, bad_steps: BadSteps) -> None:
        """Train on the next global batch, or pass over it."""
        state, start = self.state, time.perf_counter()
        figures = None
        if state.consumed_sequences in state.history.passed_over:
            pass_over_step(state, batches)
        else:
            figures = train_step(state, batches, accept=bad_steps.accept)
        state.consumed_sequences += self.config.training.global_batch_size
        self.platform.synchronize()
        seconds = time.perf_counter() - start
        self.pace.steps.append(seconds)
        self.known_steps.append(seconds)
        waited = batches.take_seconds(self.platform.device)
        if figures is not None and figures.applied:
            self.metrics.step(state.iteration, figures, seconds, waited)
        else:
            self.metrics.skipped(state.iteration, seconds)

    def _agree(self) -> Agreement:
        """What all ranks do after this step: stop, save, or neither."""
        self._step_phase("agreement")
        needed = self.pace.needed(self._validation_is_due(self.state.iteration + 1))
        return self.requests.agree(self.platform.device, needed, self.saver.is_due())

    def _save_last(self) -> None:
        self._phase("save", max(self.pace.saves))
        self._count_samples()
        self.saver.finish(self.state)

    def _step_phase(self, name: str) -> None:
        """Begin a phase whose time is part of the step's."""
        expected = statistics.median(self.known_steps) if self.known_steps else 0.0
        # A sample that hangs is quarantined after its own time limit, once for each try to read it.
        least = MAX_DATA_TRIES * self.config.data.sample_timeout_seconds if name == "data" else 0.0
        self._phase(name, expected, least)

    def _phase(self, name: str, expected_seconds: float = 0.0, least_seconds: float = 0.0) -> None:
        """Begin a phase for the watchdog; 0 for a time that is not known."""
        self.watchdog.phase(name, self.state.iteration + 1, expected_seconds, least_seconds)

    def _validate(self) -> None:
        start = time.perf_counter()
        self._phase("validation", max(self.pace.validations))
        self.metrics.validation(held_out_losses(self.state))
        self.pace.validations.append(time.perf_counter() - start)

    def _newest_checkpoint(self) -> Path | None:
        self._phase("roll back")
        self.saver.poll(self.state.iteration, wait=True)
        return resume_point(self.checkpointer.root)

    def _roll_back(self, checkpoint: Path) -> None:
        """Load a checkpoint, after which the last global batch is passed over."""
        state, step, history = self.state, self.state.iteration, self.state.history
        sequence = state.consumed_sequences - self.config.training.global_batch_size
        load_state(state, checkpoint)
        state.history = history.after_roll_back(sequence, state.history)
        self.saver.restart_at(state.iteration)
        self.metrics.roll_back(state.iteration)
        self.metrics.say(f"rolled back to step {state.iteration}; the batch of step {step} is passed over")

    def _open_data(self) -> Loader:
        """The loader at the first sequence that is not consumed; reports data that changed since the checkpoint."""
        state = self.state
        check_held_out(self.config)
        loader = build_loader(self.config, LoaderRanks.from_groups(self.groups), state.consumed_sequences)
        before = state.sample_accounting
        self.counted_before = state.sample_accounting = before.started_on(loader.data_hash, state.consumed_sequences)
        if state.sample_accounting.changes != before.changes:
            self.metrics.say(data_change_text(state, self.resumed))
        return loader

    def _validation_is_due(self, iteration: int) -> bool:
        training = self.config.training
        due = _is_due(training.validation_interval, iteration)
        return bool(self.config.data.validation) and (due or iteration == training.train_iterations)

    def _count_samples(self) -> None:
        """Bring the state's sample accounting to the newest step."""
        if self.loader is not None:
            counts = processes.from_all_ranks(self.loader.outcome_counts())
            self.state.sample_accounting = self.counted_before.plus(counts)
            if warning := decode_failures_text(self.config, self.state.sample_accounting):
                self.metrics.say(warning)


def _is_due(interval: int, iteration: int) -> bool:
    """Whether a task of every `interval` iterations is due after this one; never when `interval` is 0."""
    return interval > 0 and iteration % interval == 0
