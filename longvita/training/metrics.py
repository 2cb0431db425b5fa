"""Metrics of a run: progress on the terminal, metrics.jsonl and TensorBoard. Rank 0 writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longvita.config.flops import training_flops
from longvita.config.schema import Config
from longvita.files import append_json, read_json_lines, write_atomically
from longvita.platforms.base import Platform
from longvita.training.step import StepFigures

METRICS = "metrics.jsonl"
"""One JSON object a line, for steps ("loss" ...), for steps that changed no weight ("skipped"), and for evaluations
("validation")."""
_SMOOTHING = 0.1


class Metrics:
    """Writes the metrics of a run, on one rank only. Use as a context manager.

    Lines of steps after `iteration`, left by an earlier process that got further than its newest checkpoint, are
    removed, so that metrics.jsonl has each step once.
    """

    def __init__(self, output: Path, config: Config, iteration: int, devices: int, peak_flops: float):
        self.config = config
        self._peak = devices * peak_flops
        self._path = output / METRICS
        self._board: Any = None
        self._open_files(output, iteration)
        self._console = Console(stderr=True, soft_wrap=True)
        self._seconds_a_step: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            config.name, total=config.training.train_iterations, completed=iteration, status=""
        )
        self._reset()

    def _open_files(self, output: Path, iteration: int) -> None:
        """Remove what the files have of later steps."""
        self.iteration = iteration
        output.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(output) if line["step"] <= iteration]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        if self.config.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._close_board()
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=iteration + 1)

    def roll_back(self, iteration: int) -> None:
        """Continue after an earlier step: what came after it is removed."""
        self._open_files(self._path.parent, iteration)
        self._bar.update(self._task, completed=iteration)
        self._reset()

    def _reset(self) -> None:
        self._seconds = self._waited = self._flops = 0.0
        self._steps = self._tokens = self._tiles = 0
        self._unwritten: tuple[int, StepFigures] | None = None

    def __enter__(self) -> Metrics:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._unwritten is not None:
            self._write_step(*self._unwritten)
        if not self._bar.disable:  # some versions of rich print an empty line
            self._bar.stop()
        self._close_board()

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()

    def step(self, iteration: int, figures: StepFigures, seconds: float, waited: float) -> None:
        """Add a step that took `seconds`, `waited` of them waiting for data.

        Lines are written every logging.interval steps and after the last step of this process.
        """
        work = figures.batch.work
        self.iteration, self._unwritten = iteration, (iteration, figures)
        self._steps += 1
        self._seconds += seconds
        self._waited += waited
        self._tokens += work.tokens
        self._tiles += work.tiles
        self._flops += training_flops(self.config.model, work, self.config.training.trainable)
        if iteration >= self.config.training.train_iterations or iteration % self.config.logging.interval == 0:
            self._write_step(iteration, figures)
            self._reset()

    def _write_step(self, iteration: int, figures: StepFigures) -> None:
        losses, batch = figures.losses, figures.batch
        speed = {
            "tokens_per_second": self._tokens / self._seconds,
            "tiles_per_second": self._tiles / self._seconds,
            # Model FLOPs a second over the peak of all devices, 0 to 1.
            "mfu": self._flops / self._seconds / self._peak,
            # Part of the time that the rank that waited longest for its data spent waiting, 0 to 1.
            "data_wait_fraction": min(self._waited / self._seconds, 1.0),
        }
        self._append(
            {
                "step": iteration,
                "loss": losses.loss,
                "source_losses": losses.source_losses,
                "lr": figures.lr,
                "grad_norm": figures.grad_norm,
                "tokens": self._tokens,
                "tiles": self._tiles,
                "loss_tokens": losses.loss_tokens,
                "padding_tokens": batch.padding_tokens,
                "seconds": self._seconds,
                **speed,
            }
        )
        scalars = {
            "loss/all": losses.loss,
            **{f"loss/{source}": loss for source, loss in losses.source_losses.items()},
            "lr": figures.lr,
            "grad_norm": figures.grad_norm,
            **{f"speed/{name}": rate for name, rate in speed.items()},
        }
        self._scalars(iteration, scalars)
        self._show_progress(iteration, figures, speed)

    def _show_progress(self, iteration: int, figures: StepFigures, speed: dict[str, float]) -> None:
        """Update the bar on a terminal; print one line elsewhere, where the bar is disabled."""
        total, each, before = self.config.training.train_iterations, self._seconds / self._steps, self._seconds_a_step
        self._seconds_a_step = each if before is None else before + _SMOOTHING * (each - before)
        left = duration((total - iteration) * self._seconds_a_step)
        status = (
            f"loss {figures.losses.loss:.4f}  lr {figures.lr:.2e}  grad {figures.grad_norm:.3f}  "
            f"{speed['tokens_per_second']:,.0f} tokens/s  {speed['tiles_per_second']:,.1f} tiles/s  "
            f"MFU {100 * speed['mfu']:.1f}%  data wait {100 * speed['data_wait_fraction']:.0f}%  {left} left"
        )
        self._bar.update(self._task, completed=iteration, status=status)
        if self._bar.disable:
            self.say(f"step {iteration}/{total}  {status}")

    def skipped(self, iteration: int, seconds: float) -> None:
        """Write that a step changed no weight; the figures of the steps around it are without it."""
        self.iteration = iteration
        self._append({"step": iteration, "skipped": True, "seconds": seconds})
        self._bar.update(self._task, completed=iteration)

    def validation(self, losses: dict[str, float | None]) -> None:
        """Write the held-out loss of each source after the newest step."""
        self._append({"step": self.iteration, "validation": losses})
        self._scalars(
            self.iteration, {f"validation/{source}": loss for source, loss in losses.items() if loss is not None}
        )
        texts = [
            f"{source} {loss:.4f}" if loss is not None else f"{source}: nothing could be read"
            for source, loss in losses.items()
        ]
        self.say(f"step {self.iteration}: held-out loss {', '.join(texts)}")

    def say(self, text: RenderableType) -> None:
        """Print a line or a table."""
        self._console.print(text, highlight=False, markup=False)

    def _append(self, line: dict[str, Any]) -> None:
        append_json(self._path, line)

    def _scalars(self, iteration: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)


class NoMetrics(Metrics):
    """Metrics of the ranks that report nothing."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Metrics:
        return self

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    __exit__ = step = skipped = roll_back = validation = say = _ignore


def open_metrics(config: Config, platform: Platform, iteration: int) -> Metrics:
    """Metrics that rank 0 writes and the other ranks ignore. A collective over the whole world.

    All ranks measure the peak FLOPs at the same time, as they later compute at the same time.
    """
    dist.barrier()
    peak = platform.peak_flops(torch.bfloat16 if config.training.precision == "bf16" else torch.float32)
    if dist.get_rank() != 0:
        return NoMetrics()
    return Metrics(Path(config.output), config, iteration, dist.get_world_size(), peak)


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics, oldest first."""
    return read_json_lines(output / METRICS)


def duration(seconds: float) -> str:
    """Format seconds: 42s, 3m05s, 2h07m."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"
