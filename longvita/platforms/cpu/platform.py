"""The CPU: tests, the quickstart, and machines without an accelerator. Collectives by gloo."""

from __future__ import annotations

import functools
import os
import platform
import resource
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import psutil
import torch

from longvita.platforms.base import Offloaded, Platform
from longvita.platforms.cpu.disk_offload import SpillFile
from longvita.processes import processes_on_this_machine

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from longvita.parallel.groups import ParallelGroups
    from megatron_patches.patch import AppliedPatch, Patch

MATMUL_SIZE = 1024
"""Side of the square matrices multiplied to measure the peak."""


class CPUPlatform(Platform):
    """See the module."""

    name = "cpu"
    planned_hardware = "local"
    backend = "gloo"
    optimizer_sharding_type = "fully_reshardable"

    def is_available(self) -> bool:
        """Every machine has one."""
        return True

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def set_device(self, local_rank: int) -> None:
        """All processes share the CPU."""

    def synchronize(self) -> None:
        """CPU operators are over when they return."""

    def describe(self) -> str:
        """Processor, cores that this process may use, threads of torch."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.processor() or platform.machine()} CPU, {cores} cores, {torch.get_num_threads()} threads"

    def offload(self, tensor: torch.Tensor) -> Offloaded:
        """To a file; see longvita.platforms.cpu.disk_offload."""
        return _spill_file().put(tensor)

    def patches(self) -> list[Patch]:
        """megatron_patches/cpu."""
        from megatron_patches import cpu

        return cpu.patches()

    def activate(self) -> list[AppliedPatch]:
        """Applies the patches; see Platform.activate."""
        # megatron-core's advice on the order in which a GPU takes up kernels.
        advice = "When using (async grad allreduce|sequence parallelism) it is recommended"
        warnings.filterwarnings("ignore", message=advice, category=UserWarning)
        return super().activate()

    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """No fused GPU kernels, and pipeline messages that cannot be mixed up between two stages."""
        return {
            "gradient_accumulation_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "apply_rope_fusion": False,
            "persist_layer_norm": False,
            "deallocate_pipeline_outputs": False,
            # megatron_patches/cpu/pipeline.py says what goes wrong with batches. Overlap is for the interleaved
            # schedule, which is the only one that takes it.
            "batch_p2p_comm": False,
            "overlap_p2p_comm": virtual_pipeline > 1,
            # What the default becomes, without its deprecation warning.
            "cuda_graph_scope": [],
            # variable_seq_lengths is refused with the default, mixture of experts or not.
            "moe_token_dispatcher_type": "alltoall",
        }

    def language_layer_spec(self, config: TransformerConfig, groups: ParallelGroups | None = None) -> ModuleSpec:
        """megatron-core's local layers around `PackedAttention` and `RMSNorm`."""
        from longvita.platforms.cpu.attention import PackedAttention
        from longvita.platforms.local_layers import language_layer_spec

        return language_layer_spec(PackedAttention)

    def norm(self) -> type:
        """`RMSNorm`."""
        from longvita.platforms.norms import RMSNorm

        return RMSNorm

    def vision_attention(self) -> type:
        """`PackedAttention`, which takes attn_mask_type=no_mask for full attention."""
        from longvita.platforms.cpu.attention import PackedAttention

        return PackedAttention

    def vision_linears(self) -> tuple[type, type]:
        """megatron-core's own."""
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

        return ColumnParallelLinear, RowParallelLinear

    def vision_norm(self) -> type:
        """`LayerNorm`."""
        from longvita.platforms.norms import LayerNorm

        return LayerNorm

    def rng_state(self) -> dict[str, Any]:
        """See Platform."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        return {"generator": torch.get_rng_state(), "tracker": dict(get_cuda_rng_tracker().get_states())}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """See Platform."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        torch.set_rng_state(state["generator"])
        get_cuda_rng_tracker().set_states(dict(state["tracker"]))

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Measured once per process and dtype by a matrix product, with the threads that torch has now."""
        return _measured_flops(dtype)

    def memory(self) -> dict[str, int]:
        """Resident memory of the process, and the machine's; what is free is divided by the processes on it."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "used": psutil.Process().memory_info().rss,
            "peak": peak if sys.platform == "darwin" else peak * 1024,
            "free": psutil.virtual_memory().available // processes_on_this_machine(),
            "total": psutil.virtual_memory().total,
        }


@functools.cache
def _spill_file() -> SpillFile:
    """One for the process."""
    return SpillFile()


@functools.cache
def _measured_flops(dtype: torch.dtype) -> float:
    """Best of some matrix products, FLOP/s. bf16 is two hundred times slower than fp32, hence the smaller size."""
    size = MATMUL_SIZE if dtype == torch.float32 else MATMUL_SIZE // 4
    a = torch.randn(size, size).to(dtype)
    b = torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


PLATFORM = CPUPlatform()
