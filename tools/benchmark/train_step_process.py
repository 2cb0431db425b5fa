"""The measurements of train_step.py, in each of its processes: alternating steps of both engines."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import start_process
from rich.console import Console
from rich.table import Table
from train_step_engines import PackedDocument, TransformersStep, our_batch, pack, settings
from train_step_samples import SampleSource, build_tokenizer

from longvita.checkpoint.hf.tensor_names import INTERNVL
from longvita.checkpoint.hf.write_weights import write_weights
from longvita.checkpoint.training_state import TrainingState
from longvita.config.schema import Config
from longvita.data.batch import LocalBatch
from longvita.training.state import build_state
from longvita.training.step import train_step

MICRO_BATCHES = (2, 4)
"""Sizes of their micro batch to try, documents."""
SEQUENCE_LENGTH = 4096
"""Maximum tokens of our packed micro batch."""


def run(payload: dict[str, Any]) -> int:
    """Run all measurements; rank 0 prints."""
    config = Config.model_validate(settings())
    platform = start_process(config.platform)
    groups = platform.build_groups(config)
    folder = Path(payload["folder"])
    tokenizer = build_tokenizer(folder / f"tokenizer{groups.dp_rank}", config.model.language.vocab_size)
    state = build_state(config, groups, platform)
    write_weights(state.models, folder / "internvl", groups, INTERNVL, tokenizer)
    theirs = TransformersStep(folder / "internvl", groups, state, tokenizer.id_of("<IMG_CONTEXT>"))
    source = SampleSource(
        tokenizer, config.model.vision.image_size, config.model.tokens_per_tile, config.seed + groups.dp_rank
    )
    comparison = EngineComparison(state, theirs, Console(stderr=True, quiet=groups.dp_rank > 0))
    parameters = sum(parameter.numel() for parameter in state.models[0].parameters())
    micro_batch = comparison.fastest_micro_batch(source.take(payload["documents"]))
    rounds = [comparison.round(source.take(payload["documents"]), micro_batch, n) for n in range(payload["rounds"])]
    if groups.dp_rank == 0:
        report(parameters, micro_batch, rounds, payload["json"])
    return 0


@dataclass
class StepRound:
    """Seconds and losses of a round of steps over the same documents from the same weights."""

    tokens: int
    """Tokens of real content of all processes."""
    packed: float
    padded: float
    transformers: float
    one_by_one: float
    """Seconds of theirs with micro batches of one document."""
    losses: list[float]


class EngineComparison:
    """Both engines, and the measurement of their steps."""

    def __init__(self, state: TrainingState, theirs: TransformersStep, console: Console):
        self.state, self.theirs, self.console = state, theirs, console
        self.weights = [*state.models[0].parameters(), *theirs.model.parameters()]
        self.start = [weight.detach().clone() for weight in self.weights]

    def round(self, documents: list[PackedDocument], micro_batch: int, number: int) -> StepRound:
        """Run a step of each kind, in an order that rotates with the rounds."""
        tokens = torch.tensor(sum(len(document.input_ids) for document in documents))
        dist.all_reduce(tokens)
        parts = _parts(documents, micro_batch)
        steps = {
            "packed": self._ours([our_batch(bin_, None) for bin_ in pack(documents, SEQUENCE_LENGTH)]),
            "padded": self._ours([our_batch(part, max(len(d.input_ids) for d in part)) for part in parts]),
            "transformers": self._theirs(parts),
            "one_by_one": self._theirs(_parts(documents, 1)),
        }
        first = number % len(steps)
        order = list(steps)[first:] + list(steps)[:first]
        measured = {name: self._measure(name, steps[name]) for name in order}
        seconds = {name: result[0] for name, result in measured.items()}
        return StepRound(int(tokens), **seconds, losses=[result[1] for result in measured.values()])

    def fastest_micro_batch(self, documents: list[PackedDocument]) -> int:
        """Warm up both engines and return their fastest micro batch."""
        self._measure("warm-up, packed", self._ours([our_batch(documents, None)]))
        self._measure("warm-up, transformers", self._theirs(_parts(documents, MICRO_BATCHES[0])))
        seconds = {
            n: self._measure(f"transformers, micro batch {n}", self._theirs(_parts(documents, n)))[0]
            for n in MICRO_BATCHES
            if n <= len(documents)
        }
        return min(seconds, key=seconds.__getitem__)

    def _ours(self, batches: list[LocalBatch]) -> Callable[[], float]:
        return lambda: train_step(self.state, batches, len(batches)).losses.loss

    def _theirs(self, parts: list[list[PackedDocument]]) -> Callable[[], float]:
        batches = [self.theirs.collate(part) for part in parts]
        return lambda: self.theirs.step(batches)

    def _measure(self, name: str, step: Callable[[], float]) -> tuple[float, float]:
        """Wall seconds of the slower process and the loss of a step; restores the weights after it."""
        dist.barrier()
        start = time.perf_counter()
        loss = step()
        seconds = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        with torch.no_grad():
            for weight, first in zip(self.weights, self.start, strict=True):
                weight.copy_(first)
        self.console.log(f"{name}: {float(seconds):.1f} s", highlight=False)
        return float(seconds), loss


def _parts(documents: list[PackedDocument], size: int) -> list[list[PackedDocument]]:
    return [documents[i : i + size] for i in range(0, len(documents), size)]


def report(parameters: int, micro_batch: int, rounds: list[StepRound], as_json: bool) -> None:
    """Print the table, and the results as JSON if `as_json`."""
    table = Table(
        title=f"Tokens of real content a second, {parameters / 1e6:.1f}M parameters, 2 processes of one thread, fp32"
    )
    for column in ("tokens", "packed", "padded", "transformers, padded", "transformers, one by one", "loss"):
        table.add_column(column, justify="right")
    for r in rounds:
        speeds = [f"{r.tokens / seconds:,.0f}" for seconds in (r.packed, r.padded, r.transformers, r.one_by_one)]
        table.add_row(f"{r.tokens:,}", *speeds, f"{r.losses[0]:.6f}")
    figures = {
        "packed_over_transformers": statistics.median(r.transformers / r.packed for r in rounds),
        "padded_over_transformers": statistics.median(r.transformers / r.padded for r in rounds),
        "loss_difference": max(max(r.losses) - min(r.losses) for r in rounds),
    }
    console = Console()
    console.print(table)
    one_by_one = statistics.median(r.one_by_one / r.packed for r in rounds)
    console.print(f"transformers' fastest padded micro batch: {micro_batch} documents")
    console.print(f"packed over transformers one by one: {one_by_one:.3g}")
    for name, value in figures.items():
        console.print(f"{name}: {value:.3g}")
    if as_json:
        print(json.dumps(figures), flush=True)
