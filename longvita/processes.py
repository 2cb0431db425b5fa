"""Starts the ranks of a command on one machine, or joins those that torchrun or srun started.

The functions stand in the order of a run: the parent starts the ranks and waits for them; each rank finds its place,
runs its body, joins torch.distributed and shares errors with the other ranks. Environment variables are read here only.

`launch("package.module:function", payload, processes)` calls `function(payload)` in every rank; its integer result is
the rank's exit code. Signals reach every rank, a failed rank ends the others, and no rank outlives its parent.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import hashlib
import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from longvita.errors import USER_ERRORS, UserError

if TYPE_CHECKING:
    import torch.distributed as dist

EXIT_COMPLETE = 0
"""All work is done."""
EXIT_FAILED = 1
"""The run started and failed later: a training step could not be done, or a checkpoint could not be written. Equal to
EXIT_INCOMPLETE: for a script both mean that something is left to look at."""
EXIT_INCOMPLETE = 1
"""The work is done, except for samples, files or questions that could not be used."""
EXIT_REFUSED = UserError.exit_code
"""The config, an option, or a file that they name was refused, before any work was done."""
EXIT_SIGTERM = 75
"""Training stopped by SIGTERM; its state is saved."""
EXIT_SIGINT = 76
"""Training stopped by SIGINT (Ctrl-C); its state is saved."""
EXIT_TIME_LIMIT = 77
"""Training stopped by training.time_limit_minutes; its state is saved."""
EXIT_STALLED = 78
"""Training ended because a rank stood still; the newest checkpoint is that of before."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Interrupted by Ctrl-C where there is no state to save."""

FAILURE_GRACE_SECONDS = 5.0
"""How long the other ranks may take to end by themselves once one has ended with an error."""
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a collective waits for a lost rank, unless the caller says otherwise."""

KNOWN_WARNINGS = (
    # megatron-core at import, about optional packages
    (UserWarning, ".*(Transformer Engine|Apex).*not installed"),
    # megatron-core 0.16.1 with newer torch
    (FutureWarning, ".*is deprecated. Please use `torch.distributed"),
    (FutureWarning, "`load_state_dict` is deprecated"),
    (FutureWarning, "Please use DTensor instead"),
    (UserWarning, "full scope is deprecated"),
    # transformers, about names in the published configs
    (FutureWarning, "`rope_scaling` is deprecated"),
)

PORT_FILE = "LONGVITA_PORT_FILE"
"""The variable that names the file in which rank 0 of `launch` writes the port that it listens on."""

_PORT_POLL_SECONDS = 0.05
_FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_WATCHED_SIGNALS = {*_FORWARDED_SIGNALS, signal.SIGCHLD}
_SI_KERNEL = 0x80
_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")


class LaunchError(UserError, ValueError):
    """The environment or the arguments of a launch do not fit together."""


# ---- the parent starts the ranks


def launch(target: str, payload: dict[str, Any], processes: int, defaults: Mapping[str, str] | None = None) -> int:
    """Run `target` ("module:function", called with `payload`) in `processes` ranks and return the exit code.

    Under torchrun or srun, and for one process, the function runs in place; a launcher's process count wins. Otherwise
    the ranks are started here. `defaults` are environment variables, set where the environment has none of that name
    (longvita.platforms.environment). The result is 0, or the code of the first rank that did not end with 0 (128 plus
    the signal's number for one ended by a signal). Raises LaunchError for a count below 1.
    """
    if processes < 1:
        raise LaunchError(f"processes is {processes}: at least 1 is needed")
    variables = with_defaults(defaults or {})
    if current_place() is not None or processes == 1:
        os.environ.update(variables)
        return _run_rank(target, payload)
    with tempfile.TemporaryDirectory(prefix="longvita-") as folder:
        path = Path(folder) / "call.pickle"
        path.write_bytes(pickle.dumps((sys.path, target, payload)))
        command = [sys.executable, "-m", "longvita.processes", str(path), str(os.getpid())]
        return _run_processes(command, _environment(processes, variables, Path(folder) / "port"))


def with_defaults(defaults: Mapping[str, str]) -> dict[str, str]:
    """The variables of `defaults`, each with the value that this process's environment has for it, if any."""
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def _run_processes(command: list[str], environment: Mapping[str, str]) -> int:
    # `_watch` takes the signals one by one; the children unblock them for themselves.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED_SIGNALS)
    workers = []
    try:
        for rank in range(int(environment["WORLD_SIZE"])):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(command, env={**environment, **place}))
        return _watch(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment(count: int, variables: Mapping[str, str], port_file: Path) -> dict[str, str]:
    environment = {**os.environ, **variables}
    # A port chosen here could be another process's by the time that rank 0 binds it.
    environment.pop("MASTER_PORT", None)
    environment.update(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1")
    environment[PORT_FILE] = str(port_file)
    # More threads than cores make every process slower.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if sys.platform == "linux":
        # Gloo otherwise looks up the machine's own name, which not every container can resolve.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _watch(workers: list[subprocess.Popen]) -> int:
    """Wait for all ranks and forward signals to them; end the rest after the first failure."""
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
        received = signal.sigtimedwait(_WATCHED_SIGNALS, 0.5)
        # For a key press the kernel sends the signal, to the children as well.
        if received and received.si_signo in _FORWARDED_SIGNALS and received.si_code != _SI_KERNEL:
            for worker in running:
                worker.send_signal(received.si_signo)


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


# ---- a rank starts


def _run_child(call: str, parent: int) -> int:
    """The life of a process that `launch` started; its exit code."""
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED_SIGNALS)
    # Before the target is imported: a script of tools/ finds its neighbours through its own folder on the path.
    sys.path, target, payload = pickle.loads(Path(call).read_bytes())
    code = _run_rank(target, payload)
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


def _run_rank(target: str, payload: dict[str, Any]) -> int:
    """Run the body of one rank and leave torch.distributed after it; the exit code.

    An error that a user can fix is printed once: by one of the ranks that raise the same text, or by each rank before
    they have joined.
    """
    leave_devices_to_platforms()
    ignore_known_warnings()
    module, _, function = target.partition(":")
    completed = False
    try:
        code = getattr(importlib.import_module(module), function)(payload)
        completed = True
        return code
    except USER_ERRORS as error:
        if _is_first_to_report(str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", EXIT_REFUSED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        _leave_distributed(completed)


def leave_devices_to_platforms() -> None:
    """Keep torch from importing packages of devices by itself; call it before the first import of torch.

    A package whose driver's libraries are not on the path would end every command with torch's traceback. The platform
    imports its package, and reports what fails.
    """
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


def variable(name: str) -> str | None:
    """The value of an environment variable; None if it is unset or empty."""
    return os.environ.get(name) or None


def ignore_known_warnings() -> None:
    """Ignore KNOWN_WARNINGS from here on; call it before the libraries are imported, as some warn at import."""
    for category, message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def _is_first_to_report(text: str) -> bool:
    """Whether no other rank has reported this error; most errors are found by all ranks at once."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    store = dist.distributed_c10d._get_default_store()
    try:
        return store.add(f"longvita/error/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # the store was in a process that has ended
        return True


def _leave_distributed(completed: bool) -> None:
    """Leave torch.distributed, if joined. After an error in a larger world the other ranks may be anywhere, and leaving
    could wait for them: the end of the process ends its groups.
    """
    dist = sys.modules.get("torch.distributed")  # absent where torch itself failed to import
    if dist is not None and dist.is_initialized() and (completed or dist.get_world_size() == 1):
        dist.destroy_process_group()


# ---- a rank finds its place


@dataclass(frozen=True)
class ProcessPlace:
    """The rank of this process among those of the run, and where rank 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int | None
    """None in a rank of `launch` that has not joined: rank 0 listens on a port that the system chooses as it binds."""


def current_place() -> ProcessPlace | None:
    """The place given by torchrun, srun or `launch`; None in a process that was started alone.

    Raises LaunchError when only some of a launcher's variables are set.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return ProcessPlace(
            _integer("RANK"),
            _integer("WORLD_SIZE"),
            _integer("LOCAL_RANK"),
            _required("MASTER_ADDR"),
            None if PORT_FILE in os.environ and "MASTER_PORT" not in os.environ else _integer("MASTER_PORT"),
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


def _first_slurm_host() -> str:
    """The first node of the step's node list: "gpu[003-005,9]" and "gpu003,gpu9" give "gpu003"."""
    if os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST") or _required("SLURM_NODELIST")
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise LaunchError(f"cannot read the first node of {nodes!r}; set MASTER_ADDR to the node of rank 0")
    return match.group(1) + (match.group(2) or "")


def _port_of_slurm_step() -> int:
    """One port on all nodes; each step of a job has another, as steps may run at the same time."""
    return 20000 + (_integer("SLURM_JOB_ID") + 97 * _integer("SLURM_STEP_ID")) % 10000


def world_size_of_launcher() -> int | None:
    """Processes that torchrun or srun started; None when this process was started alone."""
    place = current_place()
    return place.world_size if place else None


def processes_on_this_machine() -> int:
    """Processes of this run on this machine, by torchrun, `launch` or srun ("2(x3)": two on each of three nodes)."""
    count = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    return int(re.split(r"\D", count)[0])


def seconds_left_of_job() -> float | None:
    """Seconds until Slurm ends the job of this process; None outside a job, or in one without a limit."""
    end = variable("SLURM_JOB_END_TIME")
    return None if end is None or not end.isdigit() else int(end) - time.time()


def is_first_process() -> bool:
    """Whether this process is rank 0, which prints for all."""
    place = current_place()
    return place is None or place.rank == 0


def is_first_on_machine() -> bool:
    """Whether this process is the first on its machine, which prints what every process finds before they join."""
    place = current_place()
    return place is None or place.local_rank == 0


# ---- ranks join, and share errors


def init_distributed(
    backend: str, set_device: Callable[[int], None], timeout: datetime.timedelta = COLLECTIVE_TIMEOUT
) -> tuple[int, int]:
    """Choose this process's device and join torch.distributed with the platform's backend.

    Returns (rank, world size). A process that was started alone makes a world of one, without a network.
    """
    import torch.distributed as dist

    place = current_place()
    if place is None:
        set_device(0)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return 0, 1
    set_device(place.local_rank)
    store, method = None, None
    if place.master_port is None:
        store = _open_store(place, timeout)
    else:
        method = f"tcp://{place.master_address}:{place.master_port}"
    try:
        dist.init_process_group(
            backend, init_method=method, store=store, rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise LaunchError(
            f"rank 0 cannot listen on MASTER_PORT {place.master_port}: another process of its machine uses this port; "
            "fix: set MASTER_PORT to a free port, the same for all ranks"
        ) from error
    return place.rank, place.world_size


def _open_store(place: ProcessPlace, timeout: datetime.timedelta) -> dist.Store:
    """The store of the ranks that `launch` started. Rank 0 binds port 0, a free one, and writes its number to a file
    that the others wait for, so that none can connect to another process's port.
    """
    import torch.distributed as dist

    path = Path(_required(PORT_FILE))
    first = place.rank == 0
    port = 0 if first else _wait_for_port(path, timeout)
    store = dist.TCPStore(place.master_address, port, place.world_size, first, timeout, wait_for_workers=False)
    if first:
        partial = path.with_name("port.partial")
        partial.write_text(str(store.port), encoding="utf-8")
        partial.rename(path)  # no other rank reads a file that is not complete
    os.environ["MASTER_PORT"] = str(store.port)
    return store


def _wait_for_port(path: Path, timeout: datetime.timedelta) -> int:
    deadline = time.monotonic() + timeout.total_seconds()
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has not joined within {timeout.total_seconds():.0f} seconds")
        time.sleep(_PORT_POLL_SECONDS)
    return int(path.read_text(encoding="utf-8"))


def from_all_ranks(value: _T, group: dist.ProcessGroup | None = None) -> list[_T]:
    """The values of all ranks of the world, or of `group`, by rank. Collective."""
    import torch.distributed as dist

    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def raise_on_all_ranks(
    work: Callable[[], _T],
    *groups: dist.ProcessGroup | None,
    error: type[UserError] = UserError,
    name_ranks: bool = False,
) -> _T:
    """The result of `work`; if a rank raises a UserError in it, raise `error` on all ranks, as others would wait.

    The ranks are those of the world, or those that `groups` reach one after the other. name_ranks: whether the text
    names the ranks that raised, unless all ranks raised the same. Collective.
    """
    import torch.distributed as dist

    result, text = None, ""
    try:
        result = work()
    except UserError as found:
        text = str(found)
    texts = {dist.get_rank() if dist.is_initialized() else 0: text}
    for group in groups or (None,):
        gathered = [texts] * (dist.get_world_size(group) if dist.is_initialized() else 1)
        if len(gathered) > 1:
            dist.all_gather_object(gathered, texts, group=group)
        texts = {rank: text for part in gathered for rank, text in part.items()}
    first_rank: dict[str, int] = {}
    for rank, text in texts.items():
        first_rank.setdefault(text, rank)
    names_ranks = name_ranks and len(first_rank) > 1
    errors = [f"rank {rank}: {text}" if names_ranks else text for text, rank in first_rank.items() if text]
    if errors:
        raise error("; ".join(errors))
    return cast(_T, result)


if __name__ == "__main__":
    sys.exit(_run_child(sys.argv[1], int(sys.argv[2])))
