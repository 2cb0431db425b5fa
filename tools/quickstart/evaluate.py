"""Accuracy on held-out digits: an answer is right if each of its tokens is the most probable one.

The answers are computed in one pass over packed sequences, with the right tokens before each token (teacher forcing).
This is equivalent to a right answer by greedy decoding: in both cases the first wrong token decides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from longvita import platforms
from longvita.checkpoint.load import load_weights
from longvita.checkpoint.resume import intact_checkpoint
from longvita.config import load
from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.data.loader import VALIDATION, LoaderRanks, build_loader
from longvita.files import write_atomically
from longvita.model.build import build_model
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform
from longvita.processes import init_distributed, launch

EVALUATION_LAYOUT = ("layout.tensor_parallel=1", "layout.pipeline_parallel=1", "layout.sequence_parallel=false")
"""A stage is evaluated data parallel; only its context parallelism remains as in training."""


@dataclass(frozen=True)
class HeldOutRun:
    """An evaluation of a checkpoint on the held-out sources of a config."""

    config: Path
    overrides: tuple[str, ...]
    """Overrides of the config, including data.validation with the sources."""
    checkpoint: Path
    result: Path
    """File for the number of right answers and of all answers by source, {source: [right, all]}."""


def evaluate_held_out(runs: Sequence[HeldOutRun], processes: int) -> None:
    """Write the result of each run, all in the same processes. Raises RuntimeError if one fails."""
    if launch("tools.quickstart.evaluate:run", {"runs": tuple(runs)}, processes) != 0:
        raise RuntimeError("the evaluation failed; see its output above")


def run(payload: dict[str, Any]) -> int:
    """Evaluate the runs of the payload in one process of the launch."""
    configs = [load(one.config, [*one.overrides, *EVALUATION_LAYOUT]) for one in payload["runs"]]
    platform = platforms.get(configs[0].platform)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    runs = zip(payload["runs"], configs, strict=True)
    for _, same_layout in itertools.groupby(runs, key=lambda pair: pair[1].layout):
        _evaluate_layout(list(same_layout), platform)
    return 0


def _evaluate_layout(runs: list[tuple[HeldOutRun, Config]], platform: Platform) -> None:
    """Evaluate runs of one layout."""
    groups = platform.build_groups(runs[0][1])
    for one, config in runs:
        models = build_model(config, groups, platform, fresh=False)
        load_weights(models, intact_checkpoint(one.checkpoint), platform)
        counts = {source: count_right(models[0], config, groups, source) for source in config.data.validation}
        if dist.get_rank() == 0:
            write_atomically(one.result, json.dumps(counts))
        dist.barrier()
    groups.destroy()


@torch.no_grad()
def count_right(model: LongVITA, config: Config, groups: ParallelGroups, source: str) -> list[int]:
    """Numbers of right answers and of all answers of one source, over all replicas."""
    model.eval()
    device = next(model.parameters()).device
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    with contextlib.closing(build_loader(config, LoaderRanks.from_groups(groups), 0, VALIDATION + source)) as loader:
        for batch in loader:
            found = right_documents(model, batch.to(device))
            # All replicas stop at the same batch: after its last sequences the loader returns batches of padding.
            more = torch.tensor([found.numel()], device=device)
            dist.all_reduce(more, group=groups.dp)
            if not more:
                break
            counts += torch.tensor([int(found.sum()), found.numel()], device=device)
    dist.all_reduce(counts, group=groups.dp)
    return counts.tolist()


def right_documents(model: LongVITA, batch: LocalBatch) -> torch.Tensor:
    """Whether all answer tokens are right, for each document with an answer: [documents] bool."""
    labels = batch.labels[0]
    positions = torch.nonzero(labels != IGNORED_LABEL)[:, 0]
    if len(positions) == 0:
        return torch.zeros(0, dtype=torch.bool)
    right = model.logits(batch, positions).argmax(dim=1) == labels[positions]
    document = torch.bucketize(positions, batch.cu_seqlens[1:].long(), right=True)
    wrong = torch.bincount(document[~right], minlength=len(batch.cu_seqlens) - 1)
    return wrong[document.unique()] == 0
