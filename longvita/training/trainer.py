"""A training run in one process: from its config to its exit code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import RenderableType

from longvita import platforms, processes
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.resume import resume_point
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.step_folders import checkpoint_root
from longvita.config import check_world_size
from longvita.config.schema import Config
from longvita.data.loader import Loader, LoaderRanks, build_loader
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.training.metrics import open_metrics
from longvita.training.run_report import data_change_text, decode_failures_text, finish_report, start_text
from longvita.training.signals import StopReason, StopRequests
from longvita.training.state import start_or_resume
from longvita.training.step import TimedBatches, TrainingError, train_step
from longvita.training.validation import check_held_out, held_out_losses


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
        with StopRequests(config.training.time_limit_minutes) as stop_requests:
            groups = platform.build_groups(config)
            code = TrainingRun(config, groups, platform, stop_requests).run(accounting_table)
        # Only after success: after an error the other ranks may be anywhere, and an orderly exit could wait for them.
        groups.destroy()
        if code != 0:
            break
    return code


class TrainingRun:
    """One stage: its steps, evaluations, checkpoints and reports. All ranks call its methods together."""

    def __init__(self, config: Config, groups: ParallelGroups, platform: Platform, stop_requests: StopRequests):
        """Build the state that the stage starts from: its newest intact checkpoint, or its initial weights."""
        self.config, self.groups, self.platform, self.stop_requests = config, groups, platform, stop_requests
        root = checkpoint_root(Path(config.output))
        self.checkpointer = Checkpointer(root, config.checkpoint.keep, platform)
        self.resumed = resume_point(root)
        self.state = start_or_resume(config, groups, platform, self.resumed)
        self.saved_iteration = self.state.iteration
        self.metrics = open_metrics(config, platform, self.state.iteration)
        self.loader: Loader | None = None

    def run(self, accounting_table: Callable[[dict[str, Any]], RenderableType]) -> int:
        """Train until all steps are done or a stop is requested, save, and write the report; the exit code.

        Raises TrainingError when a step or the saving of a checkpoint fails.
        """
        try:
            with self.metrics:
                reason = self._train()
            self._save()
            self.checkpointer.poll(wait=True)
        except CheckpointError as error:
            raise TrainingError(str(error)) from error
        if dist.get_rank() == 0:
            finish_report(self.state, reason, self.loader, self.metrics, accounting_table)
        dist.barrier()
        return reason.exit_code

    def _train(self) -> StopReason:
        state, total = self.state, self.config.training.train_iterations
        self.metrics.say(start_text(state, self.resumed))
        if state.iteration >= total:
            return StopReason.NONE
        self.loader = self._open_data()
        with contextlib.closing(self.loader):
            batches = TimedBatches(self.loader)
            while state.iteration < total:
                start = time.perf_counter()
                figures = train_step(state, batches)
                state.consumed_sequences += self.config.training.global_batch_size
                self.platform.synchronize()
                seconds = time.perf_counter() - start
                self.metrics.step(state.iteration, figures, seconds, batches.take_seconds(self.platform.device))

                reason = self.stop_requests.agree(self.platform.device)
                if reason is not StopReason.NONE and state.iteration < total:
                    return reason
                self.checkpointer.poll()
                if _is_due(self.config.checkpoint.save_interval, state.iteration):
                    self._save()
                if self._validation_is_due():
                    self.metrics.validation(held_out_losses(state))
        return StopReason.NONE

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

    def _validation_is_due(self) -> bool:
        training = self.config.training
        due = _is_due(training.validation_interval, self.state.iteration)
        return bool(self.config.data.validation) and (due or self.state.iteration == training.train_iterations)

    def _save(self) -> None:
        """Save the state, unless the newest checkpoint or the start already has it."""
        if self.state.iteration == self.saved_iteration:
            return
        if self.loader is not None:
            counts = processes.from_all_ranks(self.loader.outcome_counts())
            self.state.sample_accounting = self.counted_before.plus(counts)
            if warning := decode_failures_text(self.config, self.state.sample_accounting):
                self.metrics.say(warning)
        self.checkpointer.save(self.state)
        self.saved_iteration = self.state.iteration
        if not self.config.checkpoint.asynchronous:
            self.checkpointer.poll(wait=True)


def _is_due(interval: int, iteration: int) -> bool:
    """Whether a task of every `interval` iterations is due after this one; never when `interval` is 0."""
    return interval > 0 and iteration % interval == 0
