"""One process of an evaluation: answers its replica's part of the items; each answer is on disk before the next."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longvita.errors import UserError
from longvita.evaluation.answer_log import SCORES, AnswerWriter, OutputError, read_answers
from longvita.evaluation.task import AnswerRecord, EvaluationItem, EvaluationTask
from longvita.files import write_atomically
from longvita.inference.engine import Engine
from longvita.inference.session import CONTROL_TIMEOUT
from longvita.processes import is_first_process, raise_on_all_ranks


def answer_all(engine: Engine, task: EvaluationTask, folder: Path) -> dict[str, Any] | None:
    """Answer all items that have no answer in the folder yet; return the scores on the first process, else None.

    An item whose media cannot be used is recorded with its error and counted; the next run asks it again.
    """
    groups, items = engine.groups, task.items()
    # Replicas finish at different times and wait for each other.
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if dist.get_world_size() > 1 else None
    done = {key for key, record in read_answers(folder, items).items() if "error" not in record}
    if control is not None:
        # No process may write before all have read.
        dist.barrier(group=control)
    own = split_items(items, done, groups.dp_size)[groups.dp_rank]
    leads = groups.vision_rank == 0 and groups.is_first_stage
    writer = AnswerWriter(folder, groups.dp_rank) if leads else None
    pending = sum(item.key not in done for item in items)
    with _progress(task.name, pending, len(own), groups.dp_size) as count:
        for item in own:
            record = {"key": item.key, "digest": item.digest, **_answer(engine, task, item, leads)}
            if writer is not None:
                writer.add(record)
            count("error" in record)
    if writer is not None:
        writer.close()
    if control is not None:
        dist.barrier(group=control)
    if not is_first_process():
        return None
    answers = read_answers(folder, items)
    records = {item.key: answers[item.key] for item in items}
    scores = {"task": task.name, **task.identity(engine.config), **task.score(records)}
    try:
        write_atomically(folder / SCORES, json.dumps(scores, indent=1) + "\n")
        task.illustrate(records, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}; the same command scores what is answered") from error
    return scores


def split_items(items: Sequence[EvaluationItem], done: Collection[str], replicas: int) -> list[list[EvaluationItem]]:
    """Distribute the items that are not done over replicas: the costliest group first, to the least loaded replica.

    Groups stay together; a replica's groups are in the order of `items`. A pure function, so every process computes
    the same lists.
    """
    groups: dict[str, list[EvaluationItem]] = {}
    for item in items:
        if item.key not in done:
            groups.setdefault(item.group, []).append(item)
    order = {name: place for place, name in enumerate(groups)}
    load = [0.0] * replicas
    names_of: list[list[str]] = [[] for _ in range(replicas)]
    for name in sorted(groups, key=lambda name: (-groups[name][0].cost, order[name])):
        replica = min(range(replicas), key=lambda number: (load[number], number))
        load[replica] += groups[name][0].cost
        names_of[replica].append(name)
    return [[item for name in sorted(names, key=order.__getitem__) for item in groups[name]] for names in names_of]


def _answer(engine: Engine, task: EvaluationTask, item: EvaluationItem, leads: bool) -> AnswerRecord:
    """Return the record of one answer, or of the error; an error on one process is one on all of the replica."""
    groups = (engine.groups.tp_cp, engine.groups.pp)
    try:
        # One process unpacks the files before all read their headers. An error reaches all, so that none waits for it.
        raise_on_all_ranks(lambda: task.prepare(item) if leads else None, *groups)
        asked = raise_on_all_ranks(lambda: task.encode(engine, item), *groups)
        start = time.monotonic()
        answer = task.ask(engine, item, asked)
        return {**asked.facts, **answer, "seconds": round(time.monotonic() - start, 3)}
    except UserError as found:
        return {"error": str(found)}


@contextlib.contextmanager
def _progress(name: str, pending: int, own: int, replicas: int) -> Iterator[Callable[[bool], None]]:
    """Yield a function to call after each item, with whether it failed. The first process shows its replica's bar."""
    console = Console(stderr=True)
    text = f"{name}: {pending} to ask" + (f", {own} by the first of {replicas} replicas" if replicas > 1 else "")
    if is_first_process():
        console.print(text, highlight=False)
    bar = Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (is_first_process() and console.is_terminal),
    )
    with bar:
        row = bar.add_task("", total=own, failed="")
        failures = 0

        def count(failed: bool) -> None:
            nonlocal failures
            failures += failed
            bar.update(row, advance=1, failed=f"{failures} failed" if failures else "")

        yield count
