"""Accuracy on held-out digits: an answer counts when each of its tokens is the most probable one.

The answers are read in one pass over packed sequences, each token after the right ones before it (teacher forcing). For
greedy decoding that is the same as the generated answer being right: the first token that differs ends both.
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
from longvita.parallel.groups import ParallelGroups, initialize
from longvita.processes import init_distributed, launch

EVALUATION_LAYOUT = ("layout.tensor_parallel=1", "layout.pipeline_parallel=1", "layout.sequence_parallel=false")
"""A stage is evaluated data parallel, but for context parallelism, which stays as it was trained."""


@dataclass(frozen=True)
class Exam:
    """The held-out sources of a config, asked of a checkpoint."""

    config: Path
    overrides: tuple[str, ...]
    """Laid over the config; data.validation holds the sources then."""
    checkpoint: Path
    result: Path
    """File for the right and all answers of each source, {source: [right, all]}."""


def hold(exams: Sequence[Exam], processes: int) -> None:
    """Writes the result of each exam, all in the same processes. Raises RuntimeError if one fails."""
    if launch("tools.quickstart.evaluate:run", {"exams": tuple(exams)}, processes) != 0:
        raise RuntimeError("the evaluation failed; its output stands above")


def run(payload: dict[str, Any]) -> int:
    """What each process does."""
    configs = [load(exam.config, [*exam.overrides, *EVALUATION_LAYOUT]) for exam in payload["exams"]]
    platform = platforms.get(configs[0].platform)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    exams = zip(payload["exams"], configs, strict=True)
    for _, same_layout in itertools.groupby(exams, key=lambda pair: pair[1].layout):
        _sit(list(same_layout), platform)
    return 0


def _sit(exams: list[tuple[Exam, Config]], platform: Any) -> None:
    """Some exams of one layout."""
    groups = initialize(exams[0][1], platform)
    for exam, config in exams:
        models = build_model(config, groups, platform, fresh=False)
        load_weights(models, intact_checkpoint(exam.checkpoint), platform)
        counts = {source: count_right(models[0], config, groups, source) for source in config.data.validation}
        if dist.get_rank() == 0:
            write_atomically(exam.result, json.dumps(counts))
        dist.barrier()
    groups.destroy()


@torch.no_grad()
def count_right(model: LongVITA, config: Config, groups: ParallelGroups, source: str) -> list[int]:
    """Right and all answers of one source, over all replicas."""
    model.eval()
    device = next(model.parameters()).device
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    with contextlib.closing(build_loader(config, LoaderRanks.from_groups(groups), 0, VALIDATION + source)) as loader:
        for batch in loader:
            found = right_documents(model, batch.to(device))
            # The replicas end together: the loader pads the last sequences, and goes on with padding alone.
            more = torch.tensor([found.numel()], device=device)
            dist.all_reduce(more, group=groups.dp)
            if not more:
                break
            counts += torch.tensor([int(found.sum()), found.numel()], device=device)
    dist.all_reduce(counts, group=groups.dp)
    return counts.tolist()


def right_documents(model: LongVITA, batch: LocalBatch) -> torch.Tensor:
    """Whether each document with an answer has all its answer's tokens right: [documents] bool."""
    labels = batch.labels[0]
    positions = torch.nonzero(labels != IGNORED_LABEL)[:, 0]
    if len(positions) == 0:
        return torch.zeros(0, dtype=torch.bool)
    batch.logit_positions = positions
    right = model(batch, mode="last").argmax(dim=1) == labels[positions]
    document = torch.bucketize(positions, batch.cu_seqlens[1:].long(), right=True)
    wrong = torch.bincount(document[~right], minlength=len(batch.cu_seqlens) - 1)
    return wrong[document.unique()] == 0
