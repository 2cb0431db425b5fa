"""The CPU platform, for tests, the quickstart and machines without an accelerator. Collectives by gloo."""

from __future__ import annotations

import os
import platform
import resource
import sys
import warnings
from typing import TYPE_CHECKING, Any

import psutil
import torch
from typing_extensions import override

from longvita.platforms.base import OffloadedTensor, Platform
from longvita.platforms.cpu.disk_offload import offload_file
from longvita.processes import processes_on_this_machine

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

    from longvita.parallel.groups import ParallelGroups
    from megatron_patches.patch import Patch


class CPUPlatform(Platform):
    """Plain torch and megatron-core on the CPU."""

    name = "cpu"
    planned_hardware = "local"
    backend = "gloo"
    optimizer_sharding_type = "fully_reshardable"

    @override
    def is_available(self) -> bool:
        return True

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("cpu")

    @override
    def set_device(self, local_rank: int) -> None:
        pass

    @override
    def synchronize(self) -> None:
        pass

    @override
    def describe(self) -> str:
        """Processor, cores that this process may use, threads of torch."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.processor() or platform.machine()} CPU, {cores} cores, {torch.get_num_threads()} threads"

    @override
    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        return offload_file().put(tensor)

    @override
    def patches(self) -> list[Patch]:
        from megatron_patches import cpu

        return cpu.patches()

    @override
    def activate(self) -> list[Patch]:
        # megatron-core's advice about the order of kernels on a GPU.
        advice = "When using (async grad allreduce|sequence parallelism) it is recommended"
        warnings.filterwarnings("ignore", message=advice, category=UserWarning)
        return super().activate()

    @override
    def language_layer_spec(self, groups: ParallelGroups | None = None) -> ModuleSpec:
        from longvita.platforms.cpu.attention import PackedAttention
        from longvita.platforms.local_layers import language_layer_spec

        return language_layer_spec(PackedAttention)

    @override
    def vision_attention(self) -> type:
        from longvita.platforms.cpu.attention import PackedAttention

        return PackedAttention

    @property
    @override
    def generator(self) -> Any:
        return torch

    @override
    def matrix_side(self, dtype: torch.dtype) -> int:
        """A smaller side for bf16, whose products are two hundred times slower than those of fp32."""
        return 1024 if dtype == torch.float32 else 256

    @override
    def memory(self) -> dict[str, int]:
        """Resident memory of the process; free memory is the machine's, divided by the processes on it."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "used": psutil.Process().memory_info().rss,
            "peak": peak if sys.platform == "darwin" else peak * 1024,
            "free": psutil.virtual_memory().available // processes_on_this_machine(),
            "total": psutil.virtual_memory().total,
        }


PLATFORM = CPUPlatform()
