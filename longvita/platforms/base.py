"""What a device must answer."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from longvita.errors import UserError
from longvita.platforms import environment
from longvita.processes import ignore_known_warnings
from megatron_patches import patch

if TYPE_CHECKING:
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from longvita.attention.kv_cache import KVCache
    from longvita.config.errors import Problem
    from longvita.config.schema import Config
    from longvita.data.cp_shard import CPShard
    from longvita.parallel.groups import ParallelGroups
    from longvita.parallel.sequence_layout import SequenceLayout
    from megatron_patches.patch import AppliedPatch, Patch


class PlatformError(UserError, RuntimeError):
    """A platform that is not there, or something it cannot do."""


@functools.cache
def importable(module: str) -> bool:
    """Whether a module is there; of a dotted one the packages above it are imported, the module itself is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


class Offloaded(Protocol):
    """A tensor that has been put away; what it takes there is free again when this is dropped."""

    def start(self) -> None:
        """Begins to bring it back; `fetch` is then a matter of waiting."""

    def fetch(self) -> torch.Tensor:
        """The tensor on the device again, of the same bits. Raises PlatformError if there was no room for it."""
        ...


class Platform(ABC):
    """A kind of device: its patches, collectives, layers and figures.

    A process asks for one with `longvita.platforms.get`, calls `activate` once before it builds a model, and
    `set_device` where it has more than one device to choose from.
    """

    name: str
    """What `platform:` in a config calls it."""

    planned_hardware: str
    """Device that `longvita plan` assumes when none is given, a name of longvita.planning.hardware."""

    backend: str
    """Backend of torch.distributed."""

    optimizer_sharding_type: str
    """`distrib_optim_sharding_type` of the optimizer's checkpoints, a format that this platform can save and load."""

    # Device

    @abstractmethod
    def is_available(self) -> bool:
        """Whether this machine has such a device."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of this process."""

    @abstractmethod
    def set_device(self, local_rank: int) -> None:
        """Chooses the device of this process, the `local_rank`-th process of its machine."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns when the device has done all it was asked to do."""

    @abstractmethod
    def describe(self) -> str:
        """The device and how many there are, for people."""

    @abstractmethod
    def offload(self, tensor: torch.Tensor) -> Offloaded:
        """Begins to copy a tensor out of the device's memory, while the device goes on; nothing may write to it after.

        Raises PlatformError if there is no room.
        """

    def environment(self) -> dict[str, str]:
        """Environment variables that the launcher sets where a user has not; see longvita.platforms.environment."""
        return environment.defaults(self.name)

    # Patches

    @abstractmethod
    def patches(self) -> list[Patch]:
        """What megatron-core and torch need to run here."""

    def activate(self) -> list[AppliedPatch]:
        """Applies the platform's patches, before any model is built. Calling it again changes nothing.

        Raises megatron_patches.patch.PatchError if one does not fit what is installed.
        """
        ignore_known_warnings()
        return patch.apply(self.patches())

    def deactivate(self) -> None:
        """Takes the platform's patches back."""
        patch.revert(self.patches())

    # Config

    def problems(self, config: Config) -> list[Problem]:
        """What this platform refuses of a config, each with the reason and the fix.

        To be asked on any machine: what depends on the device or a library of this one counts where the device is.
        """
        from longvita.config.errors import Problem

        if config.training.fp8 is None:
            return []
        message = f"needs an Nvidia GPU with FP8 matrix units and Transformer Engine; platform {self.name} has neither"
        return [Problem(message, "training.fp8", config.training.fp8, fix="leave fp8 out")]

    def configure(self, config: Config) -> None:
        """Makes ready for a config, before process groups and models are made for it. Again for each config.

        Raises ConfigError for what `problems` finds.
        """
        from longvita.config.errors import ConfigError

        problems = self.problems(config)
        if problems:
            raise ConfigError(problems)

    def decisions(self) -> list[tuple[str, str]]:
        """What this platform does otherwise than others with the same config, for people: (subject, decision)."""
        return []

    def ulysses_size(self, config: Config) -> int:
        """CP ranks that trade tokens for heads in attention; see longvita.config.sizes.ulysses_size."""
        from longvita.config.sizes import ulysses_size

        return ulysses_size(config)

    # Layers

    @abstractmethod
    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """Fields of TransformerConfig that this platform needs, with `virtual_pipeline` model chunks per stage."""

    def language_config_overrides(self, config: Config) -> dict[str, Any]:
        """Fields of the language model's TransformerConfig that follow from a run's config here, over the others.

        The vision tower's config takes none of them.
        """
        return {}

    @abstractmethod
    def language_layer_spec(self, config: TransformerConfig, groups: ParallelGroups | None = None) -> ModuleSpec:
        """A decoder layer: RMSNorm, causal self-attention with GQA, RMSNorm, SwiGLU MLP.

        Its core attention takes what `split_seq_params` returns, and the parameters of whole micro batches and of
        generation (longvita.attention.core.attend_by_parts does what is split or cached).
        groups: for attention that does context parallelism itself; None for a layer that never sees a split sequence.
        """

    @abstractmethod
    def norm(self) -> type:
        """RMSNorm(config, hidden_size, eps) of the language model, the final one included."""

    @abstractmethod
    def vision_attention(self) -> type:
        """Core attention in which every position of a tile sees every other; q, k, v [s, b, heads, head_dim]."""

    @abstractmethod
    def vision_linears(self) -> tuple[type, type]:
        """Column and row parallel linear layers of the vision tower."""

    @abstractmethod
    def vision_norm(self) -> type:
        """LayerNorm(config, hidden_size, eps) of the vision tower."""

    # Sequences under context parallelism

    def sequence_layout(
        self, lengths: tuple[int, ...], ring_size: int, ulysses_size: int, tp_size: int
    ) -> tuple[SequenceLayout, SequenceLayout]:
        """Where documents of these lengths lie: over the places of the ring, and over all context-parallel ranks.

        ring_size x ulysses_size is CP; tp_size: TP ranks that share a CP rank's rows, 1 without sequence parallel. Both
        are the same layout for attention that knows no ring of groups. This one, for our own attention, cuts few
        documents; libraries for attention want `zigzag` over all ranks.
        """
        from longvita.parallel.document_placement import compact_layouts

        return compact_layouts(lengths, ring_size, ulysses_size, tp_size)

    def split_seq_params(
        self, shard: CPShard, groups: ParallelGroups, kv_cache: KVCache | None = None
    ) -> PackedSeqParams:
        """What core attention takes for this rank's rows of a micro batch: for all else they are one run, [0, t].

        With a kv_cache the rows are a chunk in generation, which lies as our own attention takes it on every platform.
        Rotary positions do not follow from this: the model gives each row's.
        """
        from longvita.attention.seq_params import SplitSeqParams, one_run
        from longvita.attention.split import SplitAttention

        split = SplitAttention(shard.layout, shard.ring_layout, groups)
        return SplitSeqParams(**one_run(shard.tokens), split=split, kv_cache=kv_cache)

    # Optimizer

    def optimizer_step(self, step: int) -> Any:
        """A number of steps as this platform's Adam counts them, in the `step` of a parameter group."""
        return step

    # Random numbers

    def seed(self, seed: int) -> None:
        """Seeds this process and megatron-core's random number tracker. Needs the process groups.

        The tracker's states differ between TP ranks (dropout and initialisation of sharded weights); the default
        state is the same on all ranks of a TP group.
        """
        import torch
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

    @abstractmethod
    def rng_state(self) -> dict[str, Any]:
        """State of the device's generator and of megatron-core's tracker, of plain tensors."""

    @abstractmethod
    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Puts back what `rng_state` returned."""

    # Figures

    @abstractmethod
    def peak_flops(self, dtype: torch.dtype) -> float:
        """What one device can do with matrices of `dtype`, FLOP/s."""

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Device memory of this process, bytes: `used` now, `peak` so far, `free` to take, `total` of the device."""
