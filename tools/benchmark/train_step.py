"""Training steps against transformers' InternVL under torch's DDP: same model, same weights, same samples.

    python tools/benchmark/train_step.py --json

Two processes of one thread. Each step is forward, backward and optimizer over documents of 100 to 2,000 tokens: text,
one picture, several pictures, videos. `packed_over_transformers` is tokens of real content a second of our packed step
over theirs, whose collator pads documents in the order they come; `padded_over_transformers` gives both the same padded
batch. Their micro batch is the fastest of several sizes, found first. The steps take turns; the ratios are medians over
the rounds. Every step starts from the same weights, so `loss_difference` is that of the three losses of a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from train_step_engines import Document, TransformersStep, our_batch, pack, settings
from train_step_samples import SampleSource, build_tokenizer

from longvita.checkpoint.internvl import write_internvl
from longvita.config.schema import Config
from longvita.data.batch import LocalBatch
from longvita.launcher import init_distributed, launch
from longvita.parallel.groups import initialize
from longvita.platforms import get
from longvita.training.state import TrainingState, build_state
from longvita.training.step import train_step

MICRO_BATCHES = (2, 4, 8)
"""Documents in a micro batch of theirs that are tried."""
SEQUENCE_LENGTH = 4096
"""Most tokens in a packed micro batch of ours."""


def main() -> int:
    """Starts the two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are measured")
    parser.add_argument("--documents", type=int, default=8, help="documents a process and step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return launch("train_step:run", {**vars(arguments), "folder": folder}, 2)


def run(payload: dict[str, Any]) -> int:
    """What each process does; rank 0 prints."""
    torch.set_num_threads(1)
    config = Config.model_validate(settings())
    platform = get(config.platform)
    platform.activate()
    init_distributed(platform)
    groups = initialize(config.layout, platform)
    folder = Path(payload["folder"])
    tokenizer = build_tokenizer(folder / f"tokenizer{groups.dp_rank}", config.model.language.vocab_size)
    state = build_state(config, groups, platform)
    write_internvl(state.models, config, folder / "internvl", groups, tokenizer)
    theirs = TransformersStep(folder / "internvl", groups, state, tokenizer.id_of("<IMG_CONTEXT>"))
    source = SampleSource(
        tokenizer, config.model.vision.image_size, config.model.tokens_per_tile, config.seed + groups.dp_rank
    )
    contest = Contest(state, theirs)
    parameters = sum(parameter.numel() for parameter in state.models[0].parameters())
    micro_batch = contest.fastest_micro_batch(source.take(payload["documents"]))
    rounds = [contest.round(source.take(payload["documents"]), micro_batch, n) for n in range(payload["rounds"])]
    if groups.dp_rank == 0:
        report(parameters, micro_batch, rounds, payload["json"])
    return 0


@dataclass
class Round:
    """Seconds and losses of one round of steps over the same documents from the same weights."""

    tokens: int
    """Tokens of real content of all processes."""
    packed: float
    padded: float
    transformers: float
    losses: list[float]


class Contest:
    """Both engines, and the measuring of their steps."""

    def __init__(self, state: TrainingState, theirs: TransformersStep):
        self.state, self.theirs = state, theirs
        self.weights = [*state.models[0].parameters(), *theirs.model.parameters()]
        self.start = [weight.detach().clone() for weight in self.weights]

    def round(self, documents: list[Document], micro_batch: int, number: int) -> Round:
        """One step each, in an order that moves on from round to round."""
        tokens = torch.tensor(sum(len(document.input_ids) for document in documents))
        dist.all_reduce(tokens)
        parts = [documents[i : i + micro_batch] for i in range(0, len(documents), micro_batch)]
        steps = {
            "packed": self._ours([our_batch(bin_, None) for bin_ in pack(documents, SEQUENCE_LENGTH)]),
            "padded": self._ours([our_batch(part, max(len(d.input_ids) for d in part)) for part in parts]),
            "transformers": self._theirs(parts),
        }
        order = list(steps)[number % 3 :] + list(steps)[: number % 3]
        measured = {name: self._measure(steps[name]) for name in order}
        seconds = {name: result[0] for name, result in measured.items()}
        return Round(int(tokens), **seconds, losses=[result[1] for result in measured.values()])

    def fastest_micro_batch(self, documents: list[Document]) -> int:
        """Warms both engines up and finds the micro batch of theirs that is fastest."""
        self._measure(self._ours([our_batch(documents, None)]))
        self._measure(self._theirs([documents]))
        seconds = {
            n: self._measure(self._theirs([documents[i : i + n] for i in range(0, len(documents), n)]))[0]
            for n in MICRO_BATCHES
            if n <= len(documents)
        }
        return min(seconds, key=seconds.__getitem__)

    def _ours(self, batches: list[LocalBatch]) -> Callable[[], float]:
        return lambda: train_step(self.state, batches, len(batches)).losses.loss

    def _theirs(self, parts: list[list[Document]]) -> Callable[[], float]:
        batches = [self.theirs.collate(part) for part in parts]
        return lambda: self.theirs.step(batches)

    def _measure(self, step: Callable[[], float]) -> tuple[float, float]:
        """Wall seconds of the slower process and the loss of a step; the weights are put back after it."""
        dist.barrier()
        start = time.perf_counter()
        loss = step()
        seconds = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        with torch.no_grad():
            for weight, first in zip(self.weights, self.start, strict=True):
                weight.copy_(first)
        return float(seconds), loss


def report(parameters: int, micro_batch: int, rounds: list[Round], as_json: bool) -> None:
    """Prints the table, and the figures as JSON if asked."""
    table = Table(title=f"Training step, {parameters / 1e6:.1f}M parameters, 2 processes of one thread, fp32")
    for column in ("round", "real tokens", "packed tokens/s", "padded tokens/s", "transformers tokens/s", "losses"):
        table.add_column(column, justify="right")
    for number, r in enumerate(rounds):
        speeds = [f"{r.tokens / seconds:,.0f}" for seconds in (r.packed, r.padded, r.transformers)]
        table.add_row(str(number + 1), f"{r.tokens:,}", *speeds, " ".join(f"{loss:.6f}" for loss in r.losses))
    figures = {
        "packed_over_transformers": statistics.median(r.transformers / r.packed for r in rounds),
        "padded_over_transformers": statistics.median(r.transformers / r.padded for r in rounds),
        "loss_difference": max(max(r.losses) - min(r.losses) for r in rounds),
    }
    console = Console()
    console.print(table)
    console.print(f"transformers' fastest micro batch: {micro_batch} documents")
    for name, value in figures.items():
        console.print(f"{name}: {value:.3g}")
    if as_json:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
