"""The environment variables that each platform's libraries want, with the reasons; what a user has set stays.

Many are read once, when a library is loaded: the launcher sets them before torch is imported. None has been tried on a
GPU or NPU by this project; meanings and defaults are those of the libraries' own documentation. Variables that name a
network or a card of one cluster (NCCL_SOCKET_IFNAME, HCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_IB_HCA) are set in
the shell from which a job is submitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """One environment variable, its value and why it has that value."""

    name: str
    value: str
    why: str


_IN_ORDER = Setting(
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "1",
    "megatron-core's tensor parallel layers need collectives to start in the order in which they are called",
)
_ONE_THREAD = Setting("OMP_NUM_THREADS", "1", "the device computes; a rank's data workers are processes of their own")

SETTINGS: dict[str, tuple[Setting, ...]] = {
    # Threads depend on the job and are set by who starts the processes.
    "cpu": (),
    "cuda": (
        _IN_ORDER,
        _ONE_THREAD,
        Setting("PYTORCH_ALLOC_CONF", "expandable_segments:True", "packed sequences differ in shape: no fragments"),
        Setting("NCCL_NVLS_ENABLE", "0", "NVLink SHARP keeps buffers of device memory for every communicator"),
        Setting("NCCL_DEBUG", "WARN", "a collective that fails says why; silent otherwise"),
    ),
    "npu": (
        _IN_ORDER,
        _ONE_THREAD,
        Setting("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True", "packed sequences differ in shape: no fragments"),
        Setting("HCCL_CONNECT_TIMEOUT", "1800", "seconds; after 120 a rank that still reads weights would be given up"),
        Setting("TASK_QUEUE_ENABLE", "2", "operators and their workspaces are prepared in a second thread"),
        Setting("CPU_AFFINITY_CONF", "1", "a rank's threads stay on the cores near its device"),
    ),
}
"""Settings by platform."""

_DEVICE_FILES = {"npu": "davinci_manager", "cuda": "nvidiactl"}
"""Files that the drivers make; they are looked for, as asking torch would load what the settings are for."""


def settings(platform: str, devices: Path = Path("/dev")) -> tuple[Setting, ...]:
    """The settings of a platform of that name; of "auto", those of the device whose driver is on this machine."""
    if platform == "auto":
        present = (name for name, file in _DEVICE_FILES.items() if (devices / file).exists())
        platform = next(present, "cpu")
    return SETTINGS.get(platform, ())


def defaults(platform: str) -> dict[str, str]:
    """The values of `settings` by name, for longvita.processes.launch."""
    return {setting.name: setting.value for setting in settings(platform)}
