"""A dry run's platform: the meta device, whose tensors have shapes and no values, and groups that send nothing.

`longvita plan CONFIG --dry-run` builds a rank of a large run with it, in a process of its own. It is no platform that
a config can name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from longvita.platforms.base import OffloadedTensor, PlatformError
from longvita.platforms.cpu.platform import CPUPlatform

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from longvita.config.errors import Problem
    from longvita.config.schema import Config
    from longvita.parallel.groups import ParallelGroups
    from longvita.platforms.layer_memory import LayerMemory
    from megatron_patches.patch import Patch

BACKEND = "fake"
"""Of torch.distributed: groups of any size in one process."""


class AwayByShape:
    """A tensor that lies elsewhere; on its way back it takes the room that it needs."""

    def __init__(self, tensor: torch.Tensor):
        self._like = tensor.shape, tensor.dtype, tensor.device
        self._back: torch.Tensor | None = None

    def start(self) -> None:
        """Takes the room."""
        self._back = self._make()

    def fetch(self) -> torch.Tensor:
        """A tensor of the same shape."""
        back, self._back = self._back, None
        return self._make() if back is None else back

    def _make(self) -> torch.Tensor:
        shape, dtype, device = self._like
        return torch.empty(shape, dtype=dtype, device=device)


class MetaPlatform(CPUPlatform):
    """See the module.

    layer_memory: the platform whose layers are substituted. For one with fused kernels, layers by shape keep for their
    backward pass what those kernels keep (longvita.planning.dry_run.shape_layers); else the CPU's own layers run.
    """

    name = "meta"
    backend = BACKEND

    def __init__(self, layer_memory: LayerMemory):
        self.layer_memory = layer_memory
        self.offloaded_bytes = 0
        """Of all tensors that were put away."""

    @property
    def device(self) -> torch.device:
        """The meta device."""
        return torch.device("meta")

    def join(self, rank: int, world_size: int) -> None:
        """Makes this process rank `rank` of `world_size` that are not there.

        Raises PlatformError if this torch has no fake groups.
        """
        try:
            from torch.testing._internal.distributed import fake_pg
        except ImportError as error:
            raise PlatformError(f"torch {torch.__version__} has no fake process groups: {error}") from error
        # Registered for accelerators and the CPU alone; the ring asks for the backend of its tensors' device.
        make: Any = fake_pg._create_fake_pg
        dist.Backend.register_backend(BACKEND, make, extended_api=True, devices=["cpu", "meta"])
        dist.init_process_group(BACKEND, rank=rank, world_size=world_size, store=fake_pg.FakeStore())

    def describe(self) -> str:
        """Which layers it has."""
        return f"shapes alone, layers of {self.layer_memory.name}"

    def problems(self, config: Config) -> list[Problem]:
        """None: a dry run asks the platform of its run."""
        return []

    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        """Counts it and lets it go."""
        self.offloaded_bytes += tensor.numel() * tensor.element_size()
        return AwayByShape(tensor)

    def patches(self) -> list[Patch]:
        """megatron_patches/meta."""
        from longvita.planning.dry_run import meta_patches

        if not hasattr(self, "_patches"):
            self._patches = meta_patches.patches(self.layer_memory)
        return self._patches

    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """The CPU's; where layers are fused, SwiGLU keeps its input alone, and stages let go of what they have sent."""
        layer_memory = self.layer_memory
        own = {
            "bias_activation_fusion": layer_memory.fused,
            "deallocate_pipeline_outputs": layer_memory.frees_stage_outputs,
        }
        return super().transformer_config_overrides(virtual_pipeline) | own

    def language_layer_spec(self, config: TransformerConfig, groups: ParallelGroups | None = None) -> ModuleSpec:
        """The CPU's, with the fused norm and attention in their places."""
        spec = super().language_layer_spec(config, groups)
        if self.layer_memory.fused:
            layer: Any = spec.submodules
            layer.input_layernorm = layer.pre_mlp_layernorm = self.norm()
            layer.self_attention.submodules.core_attention = self.vision_attention()
        return spec

    def norm(self) -> type:
        """`ShapeRMSNorm` or the CPU's."""
        from longvita.planning.dry_run.shape_layers import ShapeRMSNorm

        return ShapeRMSNorm if self.layer_memory.fused else super().norm()

    def vision_attention(self) -> type:
        """`ShapeAttention`, which keeps what the layer_memory' attention keeps, or the CPU's."""
        from longvita.planning.dry_run.shape_layers import ShapeAttention

        if not self.layer_memory.fused:
            return super().vision_attention()
        return type("KernelsAttention", (ShapeAttention,), {"statistics_bytes": self.layer_memory.statistics_bytes})
