"""Runs a function on several gloo processes of this machine and collects what each returns."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 300
PRELOADED = [
    "torch",
    "torch.distributed",
    "transformers",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.dist_checkpointing",
    "megatron.core.optimizer",
    "longvita.training.state",
    "longvita.training.step",
]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _worker(function: Callable, rank: int, world_size: int, port: int, folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    path = Path(folder) / f"{rank}.pickle"
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
        )
        result = ("ok", function(rank, world_size, *args))
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - reported to the parent, whatever it is
        result = ("error", traceback.format_exc())
    path.write_bytes(pickle.dumps(result))


def run_distributed(function: Callable, world_size: int, *args: Any, fresh: bool = False) -> list[Any]:
    """`function(rank, world_size, *args)` on `world_size` processes; the list of their results by rank.

    `function` must stand at the top of its module. `fresh` processes have imported nothing but that module, for what
    must come before megatron-core. Raises RuntimeError with the traceback of every rank that failed, and kills the
    others.
    """
    # The fork server imports the heavy packages once; each process is a fork of it and starts in milliseconds.
    context: Any = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        workers = [
            context.Process(target=_worker, args=(function, rank, world_size, port, folder, args))
            for rank in range(world_size)
        ]
        for worker in workers:
            worker.start()
        return _collect(workers, Path(folder))


def _collect(workers: list, folder: Path) -> list[Any]:
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=TIMEOUT_SECONDS)
    results: list[Any] = [None] * len(workers)
    failures: list[str] = []
    waiting = set(range(len(workers)))
    while waiting and not failures and datetime.datetime.now() < deadline:
        for rank in sorted(waiting):
            workers[rank].join(timeout=0.05)
            if workers[rank].exitcode is None:
                continue
            waiting.discard(rank)
            path = folder / f"{rank}.pickle"
            status, value = (
                pickle.loads(path.read_bytes())
                if path.exists()
                else ("error", f"exited with code {workers[rank].exitcode} and no result")
            )
            if status == "ok":
                results[rank] = value
            else:
                failures.append(f"rank {rank}: {value}")
    for rank in waiting:
        workers[rank].kill()
        workers[rank].join()
    if failures:
        raise RuntimeError("\n".join(failures))
    if waiting:
        raise RuntimeError(f"ranks {sorted(waiting)} did not end within {TIMEOUT_SECONDS} s")
    return results
