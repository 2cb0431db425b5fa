"""Starts the processes of a command on one machine, or joins those that torchrun or srun started.

The one place where environment variables are read: ranks and the meeting point of torch.distributed come from here.

`launch("package.module:function", payload, processes)` calls `function(payload)` in every process; its integer result
is the process's exit code. Signals reach every process, a failed one ends the others, and none outlives its parent.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from longvita.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

FAILURE_GRACE_SECONDS = 5.0
"""How long the other processes may take to end by themselves once one has ended with an error."""
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a collective waits for a lost process, unless the caller says otherwise."""

_FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SI_KERNEL = 0x80
_PR_SET_PDEATHSIG = 1

KNOWN_WARNINGS = (
    # megatron-core at import, of what it goes on without
    (UserWarning, ".*(Transformer Engine|Apex).*not installed"),
    # megatron-core 0.16.1 with newer torch
    (FutureWarning, ".*is deprecated. Please use `torch.distributed"),
    (FutureWarning, "`load_state_dict` is deprecated"),
    (FutureWarning, "Please use DTensor instead"),
    (UserWarning, "full scope is deprecated"),
    # transformers, of names in the published configs
    (FutureWarning, "`rope_scaling` is deprecated"),
)


class LaunchError(UserError, ValueError):
    """The environment or the arguments of a launch do not fit together."""


@dataclass(frozen=True)
class ProcessPlace:
    """Where this process stands among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int


def current_place() -> ProcessPlace | None:
    """The place given by torchrun, srun or `launch`; None in a process that was started alone.

    Raises LaunchError when the variables of a launcher are there in part only.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return ProcessPlace(
            _integer("RANK"),
            _integer("WORLD_SIZE"),
            _integer("LOCAL_RANK"),
            _required("MASTER_ADDR"),
            _integer("MASTER_PORT"),
        )
    if "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1":
        return ProcessPlace(
            _integer("SLURM_PROCID"),
            _integer("SLURM_NTASKS"),
            _integer("SLURM_LOCALID"),
            os.environ.get("MASTER_ADDR") or _first_slurm_host(),
            int(os.environ.get("MASTER_PORT") or _port_of_slurm_step()),
        )
    return None


def processes_on_this_machine() -> int:
    """Processes of this run here, as torchrun, `launch` or srun tell it ("2(x3)" is two on each of three nodes)."""
    told = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    return int(re.split(r"\D", told)[0])


def world_size_of_launcher() -> int | None:
    """Processes that torchrun or srun started; None when this process was started alone."""
    place = current_place()
    return place.world_size if place else None


def with_defaults(defaults: Mapping[str, str]) -> dict[str, str]:
    """The variables of `defaults`, each with the value that this process's environment has for it, if any."""
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def launch(target: str, payload: dict[str, Any], processes: int, defaults: Mapping[str, str] | None = None) -> int:
    """Run `target` ("module:function", called with `payload`) in `processes` processes and return the exit code.

    Under torchrun or srun, and for one process, the function runs in place; a launcher's process count wins. Otherwise
    the processes are started here. `defaults` are environment variables that they get where they have none of that name
    (longvita.platforms.environment). The result is 0, or the code of the first process that did not end with 0 (128
    plus the signal's number for one ended by a signal). Raises LaunchError for a count below 1.
    """
    if processes < 1:
        raise LaunchError(f"processes is {processes}: at least 1 is needed")
    variables = with_defaults(defaults or {})
    if current_place() is not None or processes == 1:
        os.environ.update(variables)
        ignore_known_warnings()
        return _resolve(target)(payload)
    with tempfile.TemporaryDirectory(prefix="longvita-") as folder:
        path = Path(folder) / "call.pickle"
        path.write_bytes(pickle.dumps((sys.path, target, payload)))
        command = [sys.executable, "-m", "longvita.processes", str(path), str(os.getpid())]
        return _run_processes(command, processes, variables)


def init_distributed(
    backend: str, set_device: Callable[[int], None], timeout: datetime.timedelta = COLLECTIVE_TIMEOUT
) -> tuple[int, int]:
    """Choose this process's device and join torch.distributed with the platform's backend.

    Returns (rank, world size). A process that was started alone makes a world of one, with no network in it.
    """
    import torch.distributed as dist

    place = current_place()
    if place is None:
        set_device(0)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return 0, 1
    set_device(place.local_rank)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{place.master_address}:{place.master_port}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    return place.rank, place.world_size


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise LaunchError(f"environment variable {name} is missing; start with torchrun, srun or without a launcher")
    return value


def _integer(name: str) -> int:
    value = _required(name)
    if not value.isdigit():
        raise LaunchError(f"environment variable {name} is {value!r}: a whole number is needed")
    return int(value)


def _port_of_slurm_step() -> int:
    """The same on all nodes, another for each step of a job, as steps may run side by side."""
    return 20000 + (_integer("SLURM_JOB_ID") + 97 * _integer("SLURM_STEP_ID")) % 10000


def _first_slurm_host() -> str:
    """The first node of the step's node list: "gpu[003-005,9]" and "gpu003,gpu9" give "gpu003"."""
    if os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST") or _required("SLURM_NODELIST")
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise LaunchError(f"cannot read the first node of {nodes!r}; set MASTER_ADDR to the node of rank 0")
    return match.group(1) + (match.group(2) or "")


def _resolve(target: str) -> Callable[[dict[str, Any]], int]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run_processes(command: list[str], count: int, variables: Mapping[str, str]) -> int:
    with _blocked_signals():
        environment = _environment(count, variables)
        workers = []
        try:
            for rank in range(count):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                workers.append(subprocess.Popen(command, env={**environment, **place}))
            return _watch(workers)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()


def _environment(count: int, variables: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **variables}
    environment.update(
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(_free_port()),
    )
    # More threads than cores make every process slower.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if sys.platform == "linux":
        # Gloo otherwise looks up the machine's own name, which not every container can resolve.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold signals back so that `_watch` takes them one by one; the children unblock them for themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED_SIGNALS, signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(workers: list[subprocess.Popen]) -> int:
    """Wait for all workers, passing signals on; end the rest after the first failure."""
    code = 0
    deadline: float | None = None
    while True:
        running = [worker for worker in workers if worker.poll() is None]
        if code == 0:
            code = next((_exit_code(worker.returncode) for worker in workers if worker.returncode), 0)
        if not running:
            return code
        if code != 0 and deadline is None:
            deadline = time.monotonic() + FAILURE_GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return code
        received = signal.sigtimedwait({*_FORWARDED_SIGNALS, signal.SIGCHLD}, 0.5)
        if received is not None and received.si_signo in _FORWARDED_SIGNALS and not _from_terminal(received):
            for worker in running:
                worker.send_signal(received.si_signo)


def _from_terminal(received: signal.struct_siginfo) -> bool:
    """Whether the kernel sent the signal for a key press, which the children have then received as well."""
    return received.si_code == _SI_KERNEL


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _run_child(call: str, parent: int) -> int:
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_FORWARDED_SIGNALS, signal.SIGCHLD})
    # A script of tools/ finds its neighbours through its own folder on the path; so must its processes.
    ignore_known_warnings()
    sys.path, target, payload = pickle.loads(Path(call).read_bytes())
    code = _resolve(target)(payload)
    gc.freeze()  # else the interpreter's last collection walks the libraries' objects, for more than a second
    return code


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent, process `parent`, ends in whatever way (Linux)."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that ended before the call sends nothing any more.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def ignore_known_warnings() -> None:
    """Leaves them out from here on; some are told at import, so before the libraries are imported."""
    for category, message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


if __name__ == "__main__":
    sys.exit(_run_child(sys.argv[1], int(sys.argv[2])))


def is_first_process() -> bool:
    """Whether this process is the one that speaks to the user."""
    place = current_place()
    return place is None or place.rank == 0


def speaks_for_its_machine() -> bool:
    """Whether errors found before the processes know each other are told by this process."""
    place = current_place()
    return place is None or place.local_rank == 0


EXIT_REFUSED = 2


EXIT_INTERRUPTED = 130


def together(work: Callable[[], _T], *groups: dist.ProcessGroup | None) -> _T:
    """The result of `work`, or on every rank the UserError that one of them met: alone, it would leave others waiting.

    The ranks are those of the world, or those that are reached through one group after the other.
    """
    import torch.distributed as dist

    result, error = None, ""
    try:
        result = work()
    except UserError as found:
        error = str(found)
    for group in groups or (None,):
        errors = [error] * (dist.get_world_size(group) if dist.is_initialized() else 1)
        if len(errors) > 1:
            dist.all_gather_object(errors, error, group=group)
        error = next(filter(None, errors), "")
    if error:
        raise UserError(error)
    return cast(_T, result)


_T = TypeVar("_T")
