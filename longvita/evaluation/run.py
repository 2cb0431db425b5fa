"""One process's part of an evaluation: its replica's share of the items, each answer on disk before the next."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longvita.errors import UserError
from longvita.evaluation.answer_log import SCORES, AnswerWriter, OutputError, read_answers
from longvita.evaluation.sharing import share_out
from longvita.evaluation.task import Item, Record, Task
from longvita.files import write_atomically
from longvita.inference.engine import Engine
from longvita.inference.session import CONTROL_TIMEOUT
from longvita.processes import is_first_process, together


def answer_all(engine: Engine, task: Task, folder: Path) -> dict[str, Any] | None:
    """Asks what has no answer in the folder yet; the scores on the first process, None on the others.

    An item whose media cannot be used is set aside with the reason, counted, and asked again by the next run.
    """
    groups, items = engine.groups, task.items()
    # Replicas end at different times, and wait for each other.
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if dist.get_world_size() > 1 else None
    done = {key for key, record in read_answers(folder).items() if "error" not in record}
    if control is not None:
        # No process may write before all have read.
        dist.barrier(group=control)
    share = share_out(items, done, groups.dp_size)[groups.dp_rank]
    leads = groups.vision_rank == 0 and groups.is_first_stage
    writer = AnswerWriter(folder, groups.dp_rank) if leads else None
    pending = sum(item.key not in done for item in items)
    with _progress(task.name, pending, share, groups.dp_size) as step:
        for item in share:
            record = {"key": item.key, **_ask(engine, task, item, leads)}
            if writer is not None:
                writer.add(record)
            step("error" in record)
    if writer is not None:
        writer.close()
    if control is not None:
        dist.barrier(group=control)
    if not is_first_process():
        return None
    answers = read_answers(folder)
    records = {item.key: answers[item.key] for item in items}
    scores = {"task": task.name, **task.identity(engine.config), **task.score(records)}
    try:
        write_atomically(folder / SCORES, json.dumps(scores, indent=1) + "\n")
        task.illustrate(records, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}; the same command scores what is answered") from error
    return scores


def _ask(engine: Engine, task: Task, item: Item, leads: bool) -> Record:
    """The record of one answer, or of why there is none; the same kind on every process of the replica."""
    groups = (engine.groups.tp_cp, engine.groups.pp)
    try:
        # One process unpacks, then all read headers; what one of them cannot read none of them waits for.
        together(lambda: task.prepare(item) if leads else None, *groups)
        asked = together(lambda: task.encode(engine, item), *groups)
        return task.ask(engine, item, asked)
    except UserError as found:
        return {"error": str(found)}


@contextlib.contextmanager
def _progress(name: str, pending: int, share: Sequence[Item], replicas: int) -> Iterator[Any]:
    """A function to call after each item, with whether it failed; the first process draws a bar of its replica's."""
    console = Console(stderr=True)
    text = f"{name}: {pending} to ask" + (f", {len(share)} by the first of {replicas} replicas" if replicas > 1 else "")
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
        task = bar.add_task("", total=len(share), failed="")
        failures = 0

        def step(failed: bool) -> None:
            nonlocal failures
            failures += failed
            bar.update(task, advance=1, failed=f"{failures} failed" if failures else "")

        yield step
