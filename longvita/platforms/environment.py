"""The environment variables that each platform's libraries need, with the reasons; a user's own values take precedence.

Many are read once, when a library is loaded: the launcher sets them before torch is imported. This project has tried
none of them on a GPU or NPU; meanings and defaults are those of the libraries' own documentation. Variables that name a
network interface or a card of one cluster (NCCL_SOCKET_IFNAME, HCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_IB_HCA) are
set in the shell from which a job is submitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variable:
    """An environment variable, its value and the reason for it."""

    name: str
    value: str
    why: str


_IN_ORDER = Variable(
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "1",
    "megatron-core's tensor parallel layers need collectives to start in the order in which they are called",
)
_ONE_THREAD = Variable("OMP_NUM_THREADS", "1", "the device computes; a rank's data workers are processes of their own")

VARIABLES: dict[str, tuple[Variable, ...]] = {
    # The number of threads depends on the job; whoever starts the processes sets it.
    "cpu": (),
    "cuda": (
        _IN_ORDER,
        _ONE_THREAD,
        Variable("PYTORCH_ALLOC_CONF", "expandable_segments:True", "packed sequences differ in shape: no fragments"),
        Variable("NCCL_NVLS_ENABLE", "0", "NVLink SHARP keeps buffers of device memory for every communicator"),
        Variable("NCCL_DEBUG", "WARN", "a collective that fails says why; silent otherwise"),
    ),
    "npu": (
        _IN_ORDER,
        _ONE_THREAD,
        Variable(
            "PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True", "packed sequences differ in shape: no fragments"
        ),
        Variable("HCCL_CONNECT_TIMEOUT", "1800", "seconds; with 120 a rank that still reads weights would time out"),
        Variable("TASK_QUEUE_ENABLE", "2", "operators and their workspaces are prepared in a second thread"),
        Variable("CPU_AFFINITY_CONF", "1", "a rank's threads stay on the cores near its device"),
    ),
}
"""By platform."""

_DRIVER_FILES = {"npu": "davinci_manager", "cuda": "nvidiactl"}
"""Files below /dev that the drivers create. Asking torch for devices instead would load it before the variables are
set."""


def variables(platform: str, devices: Path = Path("/dev")) -> tuple[Variable, ...]:
    """The variables of a platform; for "auto", those of the device whose driver is on this machine."""
    if platform == "auto":
        present = (name for name, file in _DRIVER_FILES.items() if (devices / file).exists())
        platform = next(present, "cpu")
    return VARIABLES.get(platform, ())


def defaults(platform: str) -> dict[str, str]:
    """The values of `variables` by name, for longvita.processes.launch."""
    return {variable.name: variable.value for variable in variables(platform)}
