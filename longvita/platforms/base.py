"""The interface of the platform layer: what a device has to provide."""

from __future__ import annotations

import functools
import importlib.util
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from longvita.errors import UserError
from longvita.platforms import environment
from longvita.processes import ignore_known_warnings
from megatron_patches import patch

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer.spec_utils import ModuleSpec

    from longvita.attention.seq_params import LibrarySeqParams
    from longvita.config.errors import Problem
    from longvita.config.schema import Config
    from longvita.data.batch import CPShard
    from longvita.parallel.groups import ParallelGroups
    from longvita.parallel.sequence_layout import SequenceLayout
    from longvita.platforms.requirements import MachineRequirement
    from megatron_patches.patch import Patch


class PlatformError(UserError, RuntimeError):
    """A platform is missing, or cannot do what is asked."""


@functools.cache
def importable(module: str) -> bool:
    """Whether a module is installed. The packages above a dotted one are imported, the module itself is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


class OffloadedTensor(Protocol):
    """A tensor copied out of the device's memory. Dropping this object frees the copy."""

    def start(self) -> None:
        """Start to copy the tensor back, so that `fetch` only waits."""

    def fetch(self) -> torch.Tensor:
        """Return the tensor on the device, bitwise equal. Raises PlatformError if the copy could not be written."""
        ...


class Platform(ABC):
    """A kind of device: its patches, collectives, layers and measurements.

    A process gets one by `longvita.platforms.get`, calls `activate` once before it builds a model, and `set_device` if
    its machine has more than one device.
    """

    name: str
    """Value of `platform:` in a config."""

    maker: str = ""
    """Maker of the devices, as printed."""

    device_package: str = ""
    """Package that finds the devices, if torch itself does not."""

    planned_hardware: str
    """Device that `longvita plan` assumes by default, a name in longvita.planning.hardware."""

    backend: str
    """Backend of torch.distributed."""

    optimizer_sharding_type: str
    """`distrib_optim_sharding_type` of the optimizer's checkpoints, a format that this platform can save and load."""

    # Machine

    @abstractmethod
    def is_available(self) -> bool:
        """Whether this machine has such a device. Raises PlatformError if the package that finds them fails."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of this process."""

    @abstractmethod
    def set_device(self, local_rank: int) -> None:
        """Select the device of this process, the `local_rank`-th process of its machine."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""

    @abstractmethod
    def describe(self) -> str:
        """Name and number of the devices, as printed."""

    @abstractmethod
    def offload(self, tensor: torch.Tensor) -> OffloadedTensor:
        """Start to copy a tensor out of the device's memory while the device computes. Nothing may write to it after.

        Raises PlatformError if there is no room.
        """

    def environment(self) -> dict[str, str]:
        """Environment variables that the launcher sets unless the user has (longvita.platforms.environment)."""
        return environment.defaults(self.name)

    def requirements(self) -> list[MachineRequirement]:
        """Drivers and libraries that a machine with such devices needs, each with its installed version."""
        return []

    def layer_versions(self) -> dict[str, str]:
        """Versions of what decides the order of parameters in a layer and in the optimizer's buffers, by library.

        Every checkpoint records them (longvita.checkpoint.parameter_order).
        """
        from longvita.platforms.versions import library_version

        libraries = {"longvita": "longvita", "megatron-core": "megatron.core", "torch": "torch"}
        return {name: library_version(name, module) for name, module in libraries.items()}

    # Patches

    @abstractmethod
    def patches(self) -> list[Patch]:
        """The patches to megatron-core and torch that this platform needs."""

    def activate(self) -> list[Patch]:
        """Apply the patches, before any model is built. A second call changes nothing.

        Raises megatron_patches.patch.PatchError if a patch does not fit the installed version.
        """
        ignore_known_warnings()
        applied = patch.apply(self.patches())
        self.layer_versions()  # read with the code: its checkouts may change during the run
        return applied

    # Config

    def problems(self, config: Config) -> list[Problem]:
        """Settings of a config that this platform refuses, each with the reason and the fix.

        Can be called on any machine: checks that need the device, or a library of its machine, run only there.
        """
        from longvita.config.errors import Problem

        if config.training.fp8 is None:
            return []
        message = f"needs an Nvidia GPU with FP8 matrix units and Transformer Engine; platform {self.name} has neither"
        return [Problem(message, "training.fp8", config.training.fp8, fix="leave fp8 out")]

    def configure(self, config: Config) -> None:
        """Prepare for a config, before its process groups and models are built. Call it again for each config.

        Raises ConfigError with the result of `problems`.
        """
        from longvita.config.errors import ConfigError

        problems = self.problems(config)
        if problems:
            raise ConfigError(problems)

    def build_groups(self, config: Config) -> ParallelGroups:
        """Configure the platform and build the config's process groups; torch.distributed must be initialised.

        Raises ConfigError as `configure`, ValueError where the layout does not divide the number of processes.
        """
        from longvita.parallel.groups import build_groups

        self.configure(config)
        return build_groups(config.layout, self.backend, self.ulysses_size(config))

    def decisions(self) -> list[tuple[str, str]]:
        """Choices that differ from other platforms for the same config, as printed: (subject, choice)."""
        return []

    def ulysses_size(self, config: Config) -> int:
        """CP ranks that exchange tokens for heads in attention (longvita.config.sizes.ulysses_size)."""
        from longvita.config.sizes import ulysses_size

        return ulysses_size(config)

    # Layers

    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """Fields of TransformerConfig that this platform needs, with `virtual_pipeline` model chunks per stage.

        These defaults use no fused kernel and send each pipeline message alone.
        """
        return {
            "gradient_accumulation_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "apply_rope_fusion": False,
            "persist_layer_norm": False,
            "deallocate_pipeline_outputs": False,
            # Batched messages are mixed up between two stages: see megatron_patches/shared/pipeline.py.
            "batch_p2p_comm": False,
            # Only the interleaved schedule supports overlap.
            "overlap_p2p_comm": virtual_pipeline > 1,
            # The future default, set here to avoid its deprecation warning.
            "cuda_graph_scope": [],
            # megatron-core refuses variable_seq_lengths with the default dispatcher, even without experts.
            "moe_token_dispatcher_type": "alltoall",
        }

    def language_config_overrides(self, config: Config) -> dict[str, Any]:
        """Fields of the language model's TransformerConfig that depend on a run's config; they override all others.

        The vision tower's config does not get them.
        """
        return {}

    @abstractmethod
    def language_layer_spec(self, groups: ParallelGroups | None = None) -> ModuleSpec:
        """A decoder layer: RMSNorm, causal self-attention with GQA, RMSNorm, SwiGLU MLP.

        Its core attention accepts every type of longvita.attention.seq_params; attend_split_or_cached of
        longvita.attention.core computes split and cached sequences.
        groups: for attention that does context parallelism itself; None for a layer that never sees a split sequence.
        """

    def norm(self) -> type:
        """RMSNorm(config, hidden_size, eps) of the language model, including the final one."""
        from longvita.platforms.norms import RMSNorm

        return RMSNorm

    @abstractmethod
    def vision_attention(self) -> type:
        """Core attention without a mask, over all positions of a tile; q, k, v [s, b, heads, head_dim]."""

    def vision_layers(self) -> tuple[type, type, type]:
        """Of the vision tower: LayerNorm(config, hidden_size, eps), column and row parallel linear layers."""
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

        from longvita.platforms.norms import LayerNorm

        return LayerNorm, ColumnParallelLinear, RowParallelLinear

    # Sequences under context parallelism

    def library_layout(self, lengths: tuple[int, ...], cp_size: int, tp_size: int) -> SequenceLayout | None:
        """Placement over the CP ranks of documents of these lengths, as a library's attention requires it.

        tp_size: TP ranks that split a CP rank's rows, 1 without sequence parallel. None for our own attention.
        """
        return None

    def library_seq_params(self, shard: CPShard) -> LibrarySeqParams | None:
        """Parameters of core attention for this rank's rows of a micro batch; None for this project's own attention."""
        return None

    # Optimizer

    def optimizer_step(self, step: int) -> Any:
        """The value of `step` in a parameter group that this platform's Adam expects after `step` steps."""
        return step

    # Random numbers

    def seed(self, seed: int) -> None:
        """Seed this process and megatron-core's random number tracker. The process groups must exist.

        The tracker's states differ between TP ranks (dropout and initialisation of sharded weights); the default
        state is identical on all ranks of a TP group.
        """
        import torch
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        torch.manual_seed(seed)
        # It adds an offset for each rank, and the sum must stay below 2**64.
        model_parallel_cuda_manual_seed(seed % 2**63, force_reset_rng=True)

    @property
    @abstractmethod
    def generator(self) -> Any:
        """The module with get_rng_state and set_rng_state of the device's generator."""

    def rng_state(self) -> dict[str, Any]:
        """State of the device's generator and of megatron-core's tracker, as plain tensors."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        return {"generator": self.generator.get_rng_state(), "tracker": dict(get_cuda_rng_tracker().get_states())}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restore a result of `rng_state`."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        self.generator.set_rng_state(state["generator"])
        get_cuda_rng_tracker().set_states(dict(state["tracker"]))

    # Measurements

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Peak of one device in matrix products of `dtype`, FLOP/s. Measured once per process and dtype by default."""
        return _measured_flops(self, dtype, self.matrix_side(dtype))

    def matrix_side(self, dtype: torch.dtype) -> int:
        """Side of the square matrices that are multiplied to measure the peak."""
        return 8192

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Device memory of this process, bytes: `used` now, `peak` so far, `free` to allocate, device `total`."""


@functools.cache
def _measured_flops(platform: Platform, dtype: torch.dtype, size: int) -> float:
    """Fastest of five matrix products, FLOP/s."""
    import torch

    a, b = (torch.randn(size, size, device=platform.device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = []
    for _ in range(5):
        platform.synchronize()
        start = time.perf_counter()
        torch.mm(a, b)
        platform.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
