"""The Ascend platform: MindSpeed's replacements in megatron-core, torch_npu, and collectives by hccl.

MindSpeed is its branch core_r0.16.0, installed from source. Settings that it silently computes wrongly are refused here
with the reason (`problems`). Differences from other devices are decided here too, so that one recipe runs on all of
them (`decisions`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from longvita.config.errors import Problem
from longvita.platforms.base import OffloadedTensor, Platform, PlatformError, importable
from longvita.platforms.npu import requirements
from longvita.platforms.pinned_offload import pinned_store
from longvita.platforms.versions import library_version
from megatron_patches.npu import adaptor
from megatron_patches.patch import PatchError

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

    from longvita.attention.seq_params import LibrarySeqParams
    from longvita.config.schema import Config
    from longvita.data.batch import CPShard
    from longvita.parallel.groups import ParallelGroups
    from longvita.parallel.sequence_layout import SequenceLayout
    from longvita.platforms.requirements import MachineRequirement
    from megatron_patches.patch import Patch


class NPUPlatform(Platform):
    """Ascend NPUs."""

    name = "npu"
    maker = "Ascend"
    device_package = "torch_npu"
    planned_hardware = "ascend-910b-64"
    backend = "hccl"
    # The fully reshardable format can be saved on NPUs, but loading it fails.
    optimizer_sharding_type = "dp_reshardable"

    # Machine

    @override
    def is_available(self) -> bool:
        """Whether torch_npu is installed and finds a device."""
        if not importable(self.device_package):
            return False
        try:
            return bool(self._npu.is_available())
        except Exception as error:  # often an ImportError: CANN's libraries are not on the path
            raise PlatformError(
                f"platform npu: torch_npu is installed and fails, {type(error).__name__}: {error}; fix: "
                f"{requirements.SET_ENVIRONMENT}, or choose another platform (platform=cpu); `longvita doctor "
                f"--platform npu` imports each package"
            ) from error

    @property
    def _npu(self) -> Any:
        """torch.npu, which exists once torch_npu is imported."""
        return importlib.import_module("torch_npu").npu

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("npu", self._npu.current_device())

    @override
    def set_device(self, local_rank: int) -> None:
        self._npu.set_device(local_rank)

    @override
    def synchronize(self) -> None:
        self._npu.synchronize()

    @override
    def describe(self) -> str:
        return f"{self._npu.device_count()} x {self._npu.get_device_name()}"

    @override
    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        # Tests run this platform over stubs on the CPU, which has no memory to pin.
        return pinned_store(self._npu, self.device.type != "cpu").put(tensor)

    @override
    def requirements(self) -> list[MachineRequirement]:
        return requirements.requirements()

    @override
    def layer_versions(self) -> dict[str, str]:
        """Also MindSpeed's: its commits reorder the parameters of a layer without a new version."""
        return super().layer_versions() | {"mindspeed": library_version("mindspeed", "mindspeed", always_commit=True)}

    # MindSpeed

    @override
    def patches(self) -> list[Patch]:
        from megatron_patches import npu

        return npu.patches()

    @override
    def activate(self) -> list[Patch]:
        """Import MindSpeed, which must precede every import of megatron-core, and then apply the patches.

        Raises PlatformError with the fix if MindSpeed cannot be imported, for any reason, or megatron-core is imported
        already.
        """
        try:
            adaptor.activate()
            return super().activate()
        except PatchError as error:
            raise PlatformError(str(error)) from error
        except Exception as error:  # a missing compiler or a wrong triton raises RuntimeError, OSError or ValueError
            raise PlatformError(requirements.import_failure(error)) from error

    @override
    def problems(self, config: Config) -> list[Problem]:
        """Settings that MindSpeed accepts and computes wrongly."""
        found = super().problems(config)
        if config.layout.ulysses in (None, 1):
            return found
        message = f"is refused on {self.name}: {adaptor.REFUSED_ALGORITHMS['ulysses_cp_algo']}"
        fix = "leave layout.ulysses out, or layout.ulysses=1: the ring is correct on packed documents"
        return [*found, Problem(message, "layout.ulysses", config.layout.ulysses, fix=fix)]

    @override
    def configure(self, config: Config) -> None:
        """Pass the config's layout to MindSpeed, before process groups and layers are built."""
        super().configure(config)
        adaptor.repatch(repatch_arguments(config))

    @override
    def decisions(self) -> list[tuple[str, str]]:
        return [
            ("layers", "Megatron's TE-shaped layer spec, filled by MindSpeed (branch core_r0.16.0)"),
            ("context parallelism", "MindSpeed's ring over all CP ranks, each document zigzag and padded to 2 x CP"),
            ("refused", "Ulysses and the all-gather of keys and values on packed documents; masks other than causal"),
            ("optimizer checkpoints", f"{self.optimizer_sharding_type}, at the TP and PP they were saved at"),
            ("vision tower", "torch_npu's fused attention, outside MindSpeed"),
            ("names replaced by MindSpeed", str(len(adaptor.replaced_names()))),
        ]

    # Layers

    @override
    def ulysses_size(self, config: Config) -> int:
        return 1

    @override
    def library_layout(self, lengths: tuple[int, ...], cp_size: int, tp_size: int) -> SequenceLayout:
        """Zigzag over all ranks, as MindSpeed's ring expects."""
        from longvita.parallel.sequence_layout import cached_zigzag

        return cached_zigzag(lengths, cp_size, tp_size)

    @override
    def library_seq_params(self, shard: CPShard) -> LibrarySeqParams:
        """The padded document bounds in all four fields.

        MindSpeed's ring reads cu_seqlens_q_padded and divides it by CP, and its attention without CP reads only
        cu_seqlens_q, whose real bounds would omit the padding.
        """
        from longvita.attention.seq_params import library_seq_params

        return library_seq_params(shard, real_lengths=False)

    @override
    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """MindSpeed's fused SwiGLU, and no fused kernel that MindSpeed lacks.

        A TransformerConfig takes each missing field from MindSpeed's arguments, so context_parallel_size is set here:
        only the language model's core attention has another value. The vision tower's config sets normalization and
        num_query_groups, which it would inherit otherwise, itself.
        """
        return super().transformer_config_overrides(virtual_pipeline) | {
            "context_parallel_size": 1,
            # gradient_accumulation_fusion stays off: frozen weights have no main_grad to add to.
            "bias_activation_fusion": True,
            # A stage frees an output after sending it: its backward pass needs only the graph.
            "deallocate_pipeline_outputs": True,
        }

    @override
    def language_config_overrides(self, config: Config) -> dict[str, Any]:
        """Pipeline stages exchange their numbers of rows: padding changes them with each micro batch."""
        return {"variable_seq_lengths": config.layout.pipeline_parallel > 1 and config.layout.context_parallel > 1}

    @override
    def language_layer_spec(self, groups: ParallelGroups | None = None) -> ModuleSpec:
        from longvita.platforms.npu.layers import language_layer_spec

        return language_layer_spec()

    @override
    def norm(self) -> type:
        from longvita.platforms.npu.layers import FusedRMSNorm

        return FusedRMSNorm

    @override
    def vision_attention(self) -> type:
        from longvita.platforms.npu.layers import TileAttention

        return TileAttention

    # Optimizer, random numbers and measurements

    @override
    def optimizer_step(self, step: int) -> torch.Tensor:
        """A new tensor for each group.

        MindSpeed's Adam before its commit 3df491c3 reads the tensor's device and adds to it in place; since then it
        keeps a number, and turns a tensor into one.
        """
        return torch.tensor(step, dtype=torch.int64, device=self.device)

    @property
    @override
    def generator(self) -> Any:
        return self._npu

    @override
    def memory(self) -> dict[str, int]:
        """Tensors in torch_npu's allocator, and the device's free and total memory."""
        free, total = self._npu.mem_get_info()
        return {
            "used": self._npu.memory_allocated(),
            "peak": self._npu.max_memory_allocated(),
            "free": free,
            "total": total,
        }


def repatch_arguments(config: Config) -> dict[str, Any]:
    """MindSpeed's arguments for a config: the required values, the layout, and its fused operators.

    micro_batch_size is always 1: the samples of a micro batch are packed into one sequence.
    """
    return {
        **adaptor.REQUIRED,
        "context_parallel_size": config.layout.context_parallel,
        "context_parallel_algo": adaptor.RING,
        "seq_length": config.data.sequence_length,
        "micro_batch_size": 1,
        "use_fused_rmsnorm": True,
        "use_fused_swiglu": True,
    }


PLATFORM = NPUPlatform()
