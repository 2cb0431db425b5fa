"""A training run in one process: from its config to its exit code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from longvita import platforms, processes
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.load import load_state
from longvita.checkpoint.resume import resume_point
from longvita.checkpoint.save import Checkpointer
from longvita.checkpoint.step_folders import checkpoint_root
from longvita.checkpoint.training_state import TrainingState
from longvita.config import check_world_size
from longvita.config.schema import Config
from longvita.data.batch import LocalBatch
from longvita.data.loader import Loader, LoaderRanks, build_loader
from longvita.model.build import build_model
from longvita.parallel import groups as parallel_groups
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.training.data_wait import TimedBatches
from longvita.training.initial_weights import read_initial_weights
from longvita.training.metrics import Metrics
from longvita.training.run_report import add_up, sample_accounting_table, write_report, write_sample_accounting
from longvita.training.signals import StopReason, StopWatch
from longvita.training.state import build_state
from longvita.training.step import StepFigures, TrainingError, train_step
from longvita.training.validation import held_out_losses


def train(stages: Sequence[Config]) -> int:
    """Run, or go on with, the training stages that the configs describe; the exit code (see longvita.training.signals).

    Every process of the run calls it; they find each other through the launcher's variables. A stage goes on from the
    newest whole checkpoint in its output folder, or starts from the weights that its checkpoint section names. They are
    all of the first one's platform; one that is stopped is the last.
    """
    platform = platforms.get(stages[0].platform)
    platform.activate()
    _, world = processes.init_distributed(platform.backend, platform.set_device)
    code = 0
    for config in stages:
        check_world_size(config, world)
        with StopWatch(config.training.time_limit_minutes) as watch:
            groups = parallel_groups.initialize(config, platform)
            code = Run(config, groups, platform, watch).run()
        # Only at a good end: after an error the other ranks may be anywhere, and leaving in order could wait for them.
        groups.destroy()
        if code != 0:
            break
    return code


class Run:
    """The loop and what it needs: steps, evaluations, checkpoints, reports."""

    def __init__(self, config: Config, groups: ParallelGroups, platform: Platform, watch: StopWatch):
        self.config, self.groups, self.platform, self.watch = config, groups, platform, watch
        self.output = Path(config.output)
        root = checkpoint_root(self.output)
        self.checkpointer = Checkpointer(root, config.checkpoint.keep, platform)
        self.saved: int | None = None
        self.loader: Loader | None = None
        self.resumed = resume_point(root)
        self.state = self._build_state()
        self.counted_before = self.state.sample_accounting
        self.metrics = self._build_metrics()

    def _build_state(self) -> TrainingState:
        models = build_model(self.config, self.groups, self.platform, fresh=self.resumed is None)
        if self.resumed is None:
            read_initial_weights(models, self.config, self.groups, self.platform)
        state = build_state(self.config, self.groups, self.platform, models)
        if self.resumed is not None:
            load_state(state, self.resumed)
            self.saved = state.iteration
        return state

    def _build_metrics(self) -> Metrics | None:
        """The first rank's alone. All measure the peak, at the same time, as they compute at the same time later."""
        dtype = torch.bfloat16 if self.config.training.precision == "bf16" else torch.float32
        dist.barrier()
        peak = self.platform.peak_flops(dtype)
        if dist.get_rank() != 0:
            return None
        return Metrics(self.output, self.config, self.state.iteration, dist.get_world_size(), peak)

    def run(self) -> int:
        """Steps until all are done or a stop is asked for; then the last checkpoint and the report.

        Raises TrainingError when a step cannot be done or a checkpoint not be written.
        """
        try:
            with self.metrics or contextlib.nullcontext():
                reason = self._loop()
            self._save()
            self.checkpointer.poll(wait=True)
        except CheckpointError as error:
            raise TrainingError(str(error)) from error
        if self.metrics is not None:
            self._finish(reason)
        dist.barrier()
        return reason.exit_code

    def _loop(self) -> StopReason:
        state, total = self.state, self.config.training.train_iterations
        self._say_start()
        if state.iteration >= total:
            return StopReason.NONE
        self.loader = build_loader(self.config, LoaderRanks.from_groups(self.groups), state.consumed_sequences)
        self._note_data(self.loader)
        with contextlib.closing(self.loader):
            batches = TimedBatches(self.loader)
            while state.iteration < total:
                figures, seconds = self._step(batches)
                waited = batches.take_seconds(self.platform.device)
                if self.metrics is not None:
                    self.metrics.step(state.iteration, figures, seconds, waited)
                reason = self.watch.agree(self.platform.device)
                if reason is not StopReason.NONE and state.iteration < total:
                    return reason
                self._between_steps()
        return StopReason.NONE

    def _note_data(self, loader: Loader) -> None:
        state = self.state
        before = state.sample_accounting
        state.sample_accounting = before.started_on(loader.data_hash, state.consumed_sequences)
        if self.metrics is not None and state.sample_accounting.changes != before.changes:
            self.metrics.say(
                f"the data are not those that {self.resumed} was trained on (files grew, changed or were mended). From "
                f"sequence {state.consumed_sequences:,} on the order is another one; samples of this epoch may come "
                "twice or never; sample_accounting.json keeps it"
            )

    def _step(self, batches: Iterator[LocalBatch]) -> tuple[StepFigures, float]:
        start = time.perf_counter()
        figures = train_step(self.state, batches)
        self.state.consumed_sequences += self.config.training.global_batch_size
        self.platform.synchronize()
        return figures, time.perf_counter() - start

    def _between_steps(self) -> None:
        """What is due after a step; every rank comes to the same answers."""
        iteration, training = self.state.iteration, self.config.training
        interval = self.config.checkpoint.save_interval
        self.checkpointer.poll()
        if interval and iteration % interval == 0:
            self._save()
        due = training.validation_interval and iteration % training.validation_interval == 0
        if self.config.data.validation and (due or iteration == training.train_iterations):
            losses = held_out_losses(self.state)
            if self.metrics is not None:
                self.metrics.validation(losses)

    def _save(self) -> None:
        """Save the state, unless it is saved already, or no step has been done."""
        if self.state.iteration in (0, self.saved):
            return
        if self.loader is not None:
            self.state.sample_accounting = add_up(self.counted_before, self.loader.outcome_counts())
        self.checkpointer.save(self.state)
        self.saved = self.state.iteration
        if not self.config.checkpoint.asynchronous:
            self.checkpointer.poll(wait=True)

    def _say_start(self) -> None:
        if self.metrics is None:
            return
        groups, state = self.groups, self.state
        layout = f"TP {groups.tp_size}, PP {groups.pp_size}, CP {groups.cp_size}, DP {groups.dp_size}"
        start = f"goes on from {self.resumed}" if self.resumed else "starts"
        weights = sum(parameter.numel() for model in state.models for parameter in model.parameters())
        self.metrics.say(
            f"{self.config.name}: {start} at step {state.iteration} of {self.config.training.train_iterations}, "
            f"{layout}, {weights:,} parameters on the first process, {self.platform.describe()}"
        )

    def _finish(self, reason: StopReason) -> None:
        word = "complete" if reason is StopReason.NONE else reason.name.lower()
        write_report(self.output, self.config, self.state.iteration, word)
        if self.loader is not None and self.metrics is not None:
            account = self.state.sample_accounting.report(self.loader.catalog, self.state.consumed_sequences)
            write_sample_accounting(self.output, account)
            self.metrics.say(sample_accounting_table(account))
        if reason is not StopReason.NONE and self.metrics is not None:
            self.metrics.say(
                f"stopped by {word.replace('_', ' ')} after step {self.state.iteration}, saved; "
                f"the same command goes on from there (exit code {reason.exit_code})"
            )
