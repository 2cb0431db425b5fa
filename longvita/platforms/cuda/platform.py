"""The Nvidia platform: Transformer Engine if it is installed, else our own attention on a flash kernel, and NCCL.

`describe` and `longvita doctor` print which of the two a machine has. docs/hardware.md lists what has been run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from longvita.platforms.base import OffloadedTensor, Platform, PlatformError, importable
from longvita.platforms.cuda import requirements
from longvita.platforms.cuda.config_problems import FP8_UNITS, find_problems
from longvita.platforms.cuda.requirements import APEX, FLASH_ATTN
from longvita.platforms.pinned_offload import pinned_store
from longvita.platforms.versions import library_version

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

    from longvita.attention.kernel import AttentionKernel
    from longvita.attention.seq_params import LibrarySeqParams
    from longvita.config.errors import Problem
    from longvita.config.schema import Config
    from longvita.data.batch import CPShard
    from longvita.parallel.groups import ParallelGroups
    from longvita.parallel.sequence_layout import SequenceLayout
    from longvita.platforms.requirements import MachineRequirement
    from megatron_patches.patch import Patch

PEAK_TFLOPS = {
    "GB200": (2500.0, 1250.0),
    "B200": (2250.0, 1125.0),
    "H200 NVL": (835.5, 417.5),
    "H200": (989.4, 494.7),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.5, 417.5),
    "H100": (989.4, 494.7),
    "H800 PCIe": (756.0, 378.0),
    "H800": (989.4, 494.7),
    "H20": (148.0, 74.0),
    "A100": (312.0, 156.0),
    "A800": (312.0, 156.0),
    "L40S": (362.0, 183.0),
}
"""Dense bf16 and TF32 TFLOP/s by a part of the device's name, from Nvidia's data sheets; the first match counts."""


class CUDAPlatform(Platform):
    """Nvidia GPUs."""

    name = "cuda"
    maker = "Nvidia"
    planned_hardware = "h100-80"
    backend = "nccl"
    optimizer_sharding_type = "fully_reshardable"

    # Machine

    @override
    def is_available(self) -> bool:
        # AMD's build of torch uses the same names.
        return torch.cuda.is_available() and torch.version.cuda is not None

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    @override
    def set_device(self, local_rank: int) -> None:
        """Select the `local_rank`-th GPU. Raises PlatformError if the machine has fewer."""
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise PlatformError(
                f"process {local_rank} of this machine has no GPU: there are {count}; fix: start at most {count} "
                "processes"
            )
        torch.cuda.set_device(local_rank)

    @override
    def synchronize(self) -> None:
        torch.cuda.synchronize()

    @override
    def describe(self) -> str:
        """Number, name and compute capability of the GPUs, and the implementation of attention."""
        major, minor = torch.cuda.get_device_capability()
        name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
        return f"{count} x {name} (compute capability {major}.{minor}), {self.attention_name()}"

    def attention_name(self) -> str:
        """The implementation of attention on this machine, as printed."""
        if self.has_engine():
            return "attention and layers by Transformer Engine"
        library = "flash-attn" if importable(FLASH_ATTN) else "torch"
        return f"attention by {library}'s flash kernel, layers by megatron-core"

    def has_engine(self) -> bool:
        """Whether Transformer Engine is installed."""
        return importable("transformer_engine")

    def capability(self) -> tuple[int, int]:
        """Compute capability of this process's GPU."""
        return torch.cuda.get_device_capability()

    @override
    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        return pinned_store(torch.cuda).put(tensor)

    @override
    def requirements(self) -> list[MachineRequirement]:
        return requirements.requirements()

    @override
    def layer_versions(self) -> dict[str, str]:
        engine = library_version("transformer-engine", "transformer_engine")
        return super().layer_versions() | {"transformer-engine": engine}

    # Patches

    @override
    def patches(self) -> list[Patch]:
        from megatron_patches import cuda

        return cuda.patches(own_adam=not (self.has_engine() or importable(APEX)))

    @override
    def activate(self) -> list[Patch]:
        """Load Transformer Engine if it is installed, and apply the patches.

        Raises PlatformError if Transformer Engine cannot be loaded: megatron-core would continue without it, with a mix
        of both kinds of layers.
        """
        if self.has_engine():
            try:
                importlib.import_module("transformer_engine.pytorch")
            except (ImportError, OSError, RuntimeError, AssertionError) as error:
                fault = requirements.other_cuda_version()
                reason = f"it {fault} ({error})" if fault else str(error)
                raise PlatformError(
                    f"Transformer Engine is installed but cannot be loaded: {reason}; fix: pip uninstall "
                    "transformer-engine to run without it, or, to build it for the installed torch, "
                    f"{requirements.reinstall_engine()}"
                ) from error
        return super().activate()

    # Config

    @override
    def problems(self, config: Config) -> list[Problem]:
        """What Transformer Engine refuses or computes wrongly.

        A machine without a GPU is treated as one that has Transformer Engine and supports every FP8 scaling.
        """
        here = self.is_available()
        return find_problems(config, self.has_engine() or not here, self.capability() if here else None)

    @override
    def decisions(self) -> list[tuple[str, str]]:
        layout, adam = "few documents cut", "apex's" if importable(APEX) else "ours, on torch's kernel"
        if self.has_engine():
            layout, adam = "zigzag over all CP ranks, each document padded to 2 x CP", "Transformer Engine's"
        fused = self.transformer_config_overrides()["gradient_accumulation_fusion"]
        return [
            ("attention and layers", self.attention_name()),
            ("documents under context parallelism", layout),
            ("Adam", adam),
            ("gradient accumulation", "fused, by apex's kernel" if fused else "not fused: apex's kernel is missing"),
        ]

    # Layers

    @override
    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """Fused kernels, if they are installed. megatron-core has the flags and the kernels."""
        return super().transformer_config_overrides(virtual_pipeline) | {
            # Both Transformer Engine and megatron-core use apex's kernel, which adds to main_grad.
            "gradient_accumulation_fusion": importable("fused_weight_gradient_mlp_cuda"),
            "bias_activation_fusion": True,
            "bias_dropout_fusion": True,
            "apply_rope_fusion": self.has_engine(),
            # An interleaved pipeline of two stages mixes up batched messages (megatron_patches/shared/pipeline.py).
            "batch_p2p_comm": virtual_pipeline == 1,
            # A stage frees an output after sending it: its backward pass needs only the graph.
            "deallocate_pipeline_outputs": True,
        }

    @override
    def language_config_overrides(self, config: Config) -> dict[str, Any]:
        """FP8; variable lengths of pipeline messages if documents are padded one by one."""
        fields: dict[str, Any] = {}
        layout = config.layout
        if self.has_engine() and layout.context_parallel > 1:
            fields["variable_seq_lengths"] = layout.pipeline_parallel > 1
        if config.training.fp8 is not None:
            fields |= {"fp8": "hybrid", "fp8_recipe": config.training.fp8}
        return fields

    def kernel(self) -> AttentionKernel:
        """Attention within one process where Transformer Engine is not used: flash-attn's, or torch's own."""
        from longvita.platforms.cuda.flash_kernels import FlashAttnKernel, TorchFlashKernel

        return FlashAttnKernel() if importable(FLASH_ATTN) else TorchFlashKernel()

    def core_attention(self) -> type:
        """CoreAttention on `kernel`."""
        from longvita.attention.core import CoreAttention

        return type("KernelAttention", (CoreAttention,), {"kernel": self.kernel()})

    @override
    def language_layer_spec(self, groups: ParallelGroups | None = None) -> ModuleSpec:
        """Transformer Engine's layers, or megatron-core's local ones around our attention."""
        if self.has_engine():
            from longvita.platforms.cuda import te_layers

            return te_layers.language_layer_spec(self.kernel(), groups, self.pads_between_documents())
        from longvita.platforms.local_layers import language_layer_spec

        return language_layer_spec(self.core_attention())

    @override
    def norm(self) -> type:
        if not self.has_engine():
            return super().norm()
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm

    @override
    def vision_attention(self) -> type:
        """Transformer Engine's with the mask type of the layer's spec, or ours."""
        if self.has_engine():
            from megatron.core.extensions.transformer_engine import TEDotProductAttention

            return TEDotProductAttention
        return self.core_attention()

    @override
    def vision_layers(self) -> tuple[type, type, type]:
        if not self.has_engine():
            return super().vision_layers()
        from megatron.core.extensions import transformer_engine as engine

        return engine.TENorm, engine.TEColumnParallelLinear, engine.TERowParallelLinear

    # Sequences under context parallelism

    @override
    def library_layout(self, lengths: tuple[int, ...], cp_size: int, tp_size: int) -> SequenceLayout | None:
        """With Transformer Engine zigzag over all ranks for each method; a rank's rows fit FP8 matrix products."""
        from longvita.parallel.sequence_layout import cached_zigzag

        return cached_zigzag(lengths, cp_size, tp_size, max(FP8_UNITS.values())) if self.has_engine() else None

    @override
    def library_seq_params(self, shard: CPShard) -> LibrarySeqParams | None:
        """For Transformer Engine the document bounds of the full sequence, real and padded."""
        from longvita.attention.seq_params import library_seq_params

        return library_seq_params(shard, self.pads_between_documents()) if self.has_engine() else None

    def pads_between_documents(self) -> bool:
        """Whether attention leaves out the padding after each document.

        cuDNN's kernel for packed sequences and FlashAttention 3 do, both from Hopper on. FlashAttention 2, on older
        GPUs, does not support padding between sequences: there the padding is computed like text, and no token attends
        to it.
        """
        return self.capability() >= (9, 0)

    # Random numbers

    @property
    @override
    def generator(self) -> Any:
        return torch.cuda

    @override
    def rng_state(self) -> dict[str, Any]:
        """As of other platforms, and the state of the host's generator."""
        return super().rng_state() | {"host": torch.get_rng_state()}

    @override
    def set_rng_state(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["host"])
        super().set_rng_state(state)

    # Measurements

    @override
    def peak_flops(self, dtype: torch.dtype) -> float:
        """From the data sheet if PEAK_TFLOPS has the device, else measured by a matrix product."""
        name = torch.cuda.get_device_name()
        for part, (half, full) in PEAK_TFLOPS.items():
            if part in name:
                return (full if dtype == torch.float32 else half) * 1e12
        return super().peak_flops(dtype)

    @override
    def memory(self) -> dict[str, int]:
        """Tensors in torch's allocator, now and at most; `free` is its unused memory plus the GPU's free memory."""
        free, total = torch.cuda.mem_get_info()
        used = torch.cuda.memory_allocated()
        return {
            "used": used,
            "peak": torch.cuda.max_memory_allocated(),
            "free": free + torch.cuda.memory_reserved() - used,
            "total": total,
        }


PLATFORM = CUDAPlatform()
