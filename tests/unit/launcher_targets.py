"""Functions that the launcher's tests run in other processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from longvita.processes import LaunchError, current_place, init_distributed, raise_on_all_ranks


def join() -> tuple[int, int]:
    """Join torch.distributed; a CPU has no device to choose."""
    return init_distributed("gloo", lambda local_rank: None)


def write_rank(payload: dict) -> int:
    """Sum the ranks and write (rank, world size, sum) to a file per rank."""
    rank, world_size = join()
    total = torch.tensor([rank])
    dist.all_reduce(total)
    Path(payload["folder"], str(rank)).write_text(f"{rank} {world_size} {int(total)}")
    return 0


def write_port(payload: dict) -> int:
    """Write the port of the run to a file per rank."""
    rank, _ = join()
    Path(payload["folder"], f"{rank}.port").write_text(str(current_place().master_port))
    return 0


def refuse_on_all_ranks(payload: dict) -> int:
    """Every rank raises the same error."""
    join()
    raise LaunchError("the same on all")


def refuse_on_rank_one(payload: dict) -> int:
    """Rank 1 raises an error that the other shares."""
    rank, _ = join()

    def work() -> None:
        if rank == payload["refusing"]:
            raise LaunchError(f"found by {rank}")

    raise_on_all_ranks(work, error=LaunchError, name_ranks=payload["name_ranks"])
    return 0


def read_without_permission_on_rank_one(payload: dict) -> int:
    """Rank 1 alone meets a file that it may not read."""
    if current_place().rank == 1:
        raise PermissionError(13, "Permission denied", "held_back.jsonl")
    return 0


def fail_on_rank_one(payload: dict) -> int:
    """Rank 1 ends with the code asked for; the others would sleep for long."""
    rank = current_place().rank
    Path(payload["folder"], f"{rank}.pid").write_text(str(os.getpid()))
    if rank == 1:
        return payload["code"]
    time.sleep(300)
    return 0


def wait_for_sigterm(payload: dict) -> int:
    """Write the process's id, then sleep until SIGTERM and end with code 7."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    folder, rank = Path(payload["folder"]), current_place().rank
    (folder / f"{rank}.new").write_text(str(os.getpid()))
    (folder / f"{rank}.new").rename(folder / f"{rank}.pid")
    time.sleep(300)
    return 0


def write_variables(payload: dict) -> int:
    """Write what two variables of the environment hold."""
    values = (os.environ.get(f"LONGVITA_TEST_{name}", "") for name in ("SET", "FREE"))
    Path(payload["folder"], "variables").write_text(" ".join(values))
    return 0
