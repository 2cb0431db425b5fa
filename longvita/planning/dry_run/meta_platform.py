"""The platform of a dry run: the meta device, whose tensors have shapes and no values, and groups that send nothing.

`longvita plan CONFIG --dry-run` builds ranks of a large run with it, in a separate process. A config cannot name it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from typing_extensions import override

from longvita.platforms.base import OffloadedTensor, PlatformError
from longvita.platforms.cpu.platform import CPUPlatform

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

    from longvita.config.errors import Problem
    from longvita.config.schema import Config
    from longvita.parallel.groups import ParallelGroups
    from longvita.platforms.layer_memory import LayerMemory
    from megatron_patches.patch import Patch

BACKEND = "fake"
"""Backend of torch.distributed for groups of any size in one process."""


class OffloadedShape:
    """An offloaded tensor by shape: it takes memory again when it is copied back."""

    def __init__(self, tensor: torch.Tensor):
        self._like = tensor.shape, tensor.dtype, tensor.device
        self._back: torch.Tensor | None = None

    def start(self) -> None:
        """Allocate the tensor."""
        self._back = self._make()

    def fetch(self) -> torch.Tensor:
        """Return a tensor of the same shape."""
        back, self._back = self._back, None
        return self._make() if back is None else back

    def _make(self) -> torch.Tensor:
        shape, dtype, device = self._like
        return torch.empty(shape, dtype=dtype, device=device)


class MetaPlatform(CPUPlatform):
    """Platform of a dry run.

    layer_memory: the platform whose layers are substituted. For one with fused kernels, layers by shape keep for their
    backward pass what those kernels keep (longvita.planning.dry_run.shape_layers); else the CPU's own layers run.
    """

    name = "meta"
    backend = BACKEND

    def __init__(self, layer_memory: LayerMemory):
        self.layer_memory = layer_memory
        self.offloaded_bytes = 0
        """Bytes of all tensors that were offloaded."""

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("meta")

    def join(self, rank: int, world_size: int) -> None:
        """Make this process rank `rank` of `world_size`; the other ranks do not exist.

        Raises PlatformError if this torch has no fake process groups.
        """
        try:
            from torch.testing._internal.distributed import fake_pg
        except ImportError as error:
            raise PlatformError(f"torch {torch.__version__} has no fake process groups: {error}") from error
        # torch registers the backend only for accelerators and the CPU; the ring uses that of its tensors' device.
        make: Any = fake_pg._create_fake_pg
        dist.Backend.register_backend(BACKEND, make, extended_api=True, devices=["cpu", "meta"])
        dist.init_process_group(BACKEND, rank=rank, world_size=world_size, store=fake_pg.FakeStore())

    @override
    def describe(self) -> str:
        return f"shapes without values, layers of {self.layer_memory.name}"

    @override
    def problems(self, config: Config) -> list[Problem]:
        return []  # longvita.planning.dry_run.run asks the platform of the run

    @override
    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        self.offloaded_bytes += tensor.numel() * tensor.element_size()
        return OffloadedShape(tensor)

    @override
    def patches(self) -> list[Patch]:
        from longvita.planning.dry_run import meta_patches

        if not hasattr(self, "_patches"):
            self._patches = meta_patches.patches(self.layer_memory)
        return self._patches

    @override
    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        return super().transformer_config_overrides(virtual_pipeline) | {
            "bias_activation_fusion": self.layer_memory.fused,
            "deallocate_pipeline_outputs": self.layer_memory.frees_stage_outputs,
        }

    @override
    def language_layer_spec(self, groups: ParallelGroups | None = None) -> ModuleSpec:
        spec = super().language_layer_spec(groups)
        layer: Any = spec.submodules
        if self.layer_memory.fused:
            layer.input_layernorm = layer.pre_mlp_layernorm = self.norm()
            layer.self_attention.submodules.core_attention = self.vision_attention()
        if self.layer_memory.keeps_frozen_row_inputs:
            from longvita.planning.dry_run.shape_layers import ShapeRowLinear

            layer.self_attention.submodules.linear_proj = layer.mlp.submodules.linear_fc2 = ShapeRowLinear
        return spec

    @override
    def norm(self) -> type:
        from longvita.planning.dry_run.shape_layers import ShapeRMSNorm

        return ShapeRMSNorm if self.layer_memory.fused else super().norm()

    @override
    def vision_attention(self) -> type:
        from longvita.planning.dry_run.shape_layers import ShapeAttention

        if not self.layer_memory.fused:
            return super().vision_attention()
        return type(
            "ShapeAttentionOfPlatform", (ShapeAttention,), {"statistics_bytes": self.layer_memory.statistics_bytes}
        )
