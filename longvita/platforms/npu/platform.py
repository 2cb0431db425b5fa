"""Ascend devices: MindSpeed's replacements under megatron-core, torch_npu, collectives by hccl.

MindSpeed is its branch core_r0.16.0, installed from source. What it gets wrong without a word is refused here with the
reason (`problems`), and what differs from other devices is decided here, so that one recipe runs on all (`decisions`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import torch

from longvita.config.errors import Problem
from longvita.platforms.base import Offloaded, Platform, PlatformError
from longvita.platforms.requirements import INSTALL_MINDSPEED
from megatron_patches.npu import adaptor
from megatron_patches.patch import PatchError

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from longvita.attention.kv_cache import KVCache
    from longvita.config.schema import Config
    from longvita.data.cp_shard import CPShard
    from longvita.parallel.groups import ParallelGroups
    from longvita.parallel.sequence_layout import SequenceLayout
    from megatron_patches.patch import AppliedPatch, Patch

MATMUL_SIZE = 8192
"""Side of the square matrices multiplied to measure the peak."""


class NPUPlatform(Platform):
    """See the module."""

    name = "npu"
    planned_hardware = "ascend-910b-64"
    backend = "hccl"
    # The fully reshardable format is saved there, and its load fails.
    optimizer_sharding_type = "dp_reshardable"

    def is_available(self) -> bool:
        """Whether torch_npu is installed and finds a device."""
        if importlib.util.find_spec("torch_npu") is None:
            return False
        try:
            return bool(self._npu.is_available())
        except (ImportError, OSError):  # CANN's libraries are not on the path
            return False

    @property
    def _npu(self) -> Any:
        """torch.npu, which importing torch_npu makes."""
        return importlib.import_module("torch_npu").npu

    @property
    def device(self) -> torch.device:
        """The chosen device."""
        return torch.device("npu", self._npu.current_device())

    def set_device(self, local_rank: int) -> None:
        """See Platform."""
        self._npu.set_device(local_rank)

    def synchronize(self) -> None:
        """See Platform."""
        self._npu.synchronize()

    def describe(self) -> str:
        """Name of the chip, and how many there are."""
        return f"{self._npu.device_count()} x {self._npu.get_device_name()}"

    def offload(self, tensor: torch.Tensor) -> Offloaded:
        """To the host's pinned memory; see longvita.platforms.pinned_offload."""
        return _pinned_store(self).put(tensor)

    # MindSpeed

    def patches(self) -> list[Patch]:
        """megatron_patches/npu."""
        from megatron_patches import npu

        return npu.patches()

    def activate(self) -> list[AppliedPatch]:
        """MindSpeed first, before anything of megatron-core is imported, then the patches; see Platform.activate.

        Raises PlatformError with the fix where MindSpeed is missing or comes too late.
        """
        try:
            adaptor.activate()
        except ImportError as error:
            raise PlatformError(
                f"MindSpeed cannot be imported: {error}. `longvita doctor` names what it needs; to install MindSpeed "
                f"itself: {INSTALL_MINDSPEED} (the packages of that name on PyPI are placeholders)"
            ) from error
        except PatchError as error:
            raise PlatformError(str(error)) from error
        return super().activate()

    def problems(self, config: Config) -> list[Problem]:
        """What MindSpeed accepts and gets wrong."""
        found = super().problems(config)
        if config.layout.ulysses in (None, 1):
            return found
        return [
            *found,
            Problem(
                f"is refused on {self.name}: {adaptor.REFUSED_ALGORITHMS['ulysses_cp_algo']}",
                "layout.ulysses",
                config.layout.ulysses,
                fix="leave layout.ulysses out, or layout.ulysses=1: the ring is right on packed documents",
            ),
        ]

    def configure(self, config: Config) -> None:
        """Tells MindSpeed the layout, before process groups and layers are made; see Platform.configure."""
        super().configure(config)
        adaptor.repatch(repatch_arguments(config))

    def decisions(self) -> list[tuple[str, str]]:
        """See Platform.decisions."""
        return [
            ("layers", "Megatron's TE-shaped layer spec, filled by MindSpeed (branch core_r0.16.0)"),
            ("context parallelism", "MindSpeed's ring over all CP ranks, each document zigzag and padded to 2 x CP"),
            ("refused", "Ulysses and the all-gather of keys and values on packed documents; masks other than causal"),
            ("optimizer checkpoints", f"{self.optimizer_sharding_type}, at the TP and PP they were saved at"),
            ("vision tower", "torch_npu's fused attention, outside MindSpeed"),
            ("names replaced by MindSpeed", str(len(adaptor.replaced_names()))),
        ]

    # Layers

    def ulysses_size(self, config: Config) -> int:
        """The ring alone."""
        return 1

    def sequence_layout(
        self, lengths: tuple[int, ...], ring_size: int, ulysses_size: int, tp_size: int
    ) -> tuple[SequenceLayout, SequenceLayout]:
        """Zigzag over all ranks, which is the layout of MindSpeed's ring."""
        from longvita.parallel.sequence_layout import zigzag

        layout = zigzag(lengths, ring_size * ulysses_size, tp_size)
        return layout, layout

    def split_seq_params(
        self, shard: CPShard, groups: ParallelGroups, kv_cache: KVCache | None = None
    ) -> PackedSeqParams:
        """The padded bounds of the documents in all four fields: MindSpeed's ring reads cu_seqlens_q_padded alone."""
        if kv_cache is not None:
            return super().split_seq_params(shard, groups, kv_cache)
        from longvita.platforms.npu.layers import padded_bounds

        return padded_bounds(shard)

    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        """MindSpeed's fused SwiGLU, no fused kernels that it has none of, no pipeline messages that mix.

        What a TransformerConfig is not given it takes from MindSpeed's arguments, so context_parallel_size is given:
        the core attention of the language model alone has another one. The vision tower's config gives the rest that
        it would inherit, normalization and num_query_groups, by itself.
        """
        return {
            "context_parallel_size": 1,
            # Frozen weights have no main_grad to add to.
            "gradient_accumulation_fusion": False,
            "bias_activation_fusion": True,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "apply_rope_fusion": False,
            "persist_layer_norm": False,
            "batch_p2p_comm": False,
            # A stage lets go of what it has sent: its backward pass needs the graph alone.
            "deallocate_pipeline_outputs": True,
            "overlap_p2p_comm": virtual_pipeline > 1,
            "cuda_graph_scope": [],
            "moe_token_dispatcher_type": "alltoall",
        }

    def language_config_overrides(self, config: Config) -> dict[str, Any]:
        """Pipeline stages tell each other their rows: padding makes them another number in each micro batch."""
        return {"variable_seq_lengths": config.layout.pipeline_parallel > 1 and config.layout.context_parallel > 1}

    def language_layer_spec(self, config: TransformerConfig, groups: ParallelGroups | None = None) -> ModuleSpec:
        """See longvita.platforms.npu.layers."""
        from longvita.platforms.npu.layers import language_layer_spec

        return language_layer_spec()

    def norm(self) -> type:
        """RMSNorm on the fused operator."""
        from longvita.platforms.npu.layers import RMSNorm

        return RMSNorm

    def vision_attention(self) -> type:
        """`TileAttention`."""
        from longvita.platforms.npu.layers import TileAttention

        return TileAttention

    def vision_linears(self) -> tuple[type, type]:
        """megatron-core's own."""
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

        return ColumnParallelLinear, RowParallelLinear

    def vision_norm(self) -> type:
        """torch's, which torch_npu has a kernel for."""
        from longvita.platforms.norms import LayerNorm

        return LayerNorm

    # Optimizer, random numbers and figures

    def optimizer_step(self, step: int) -> torch.Tensor:
        """A tensor, another one in each group: MindSpeed's Adam asks it for its device, and adds to it in place."""
        return torch.tensor(step, dtype=torch.int64, device=self.device)

    def rng_state(self) -> dict[str, Any]:
        """See Platform."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        return {"generator": self._npu.get_rng_state(), "tracker": dict(get_cuda_rng_tracker().get_states())}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """See Platform."""
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        self._npu.set_rng_state(state["generator"])
        get_cuda_rng_tracker().set_states(dict(state["tracker"]))

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Measured once per process and dtype by a matrix product."""
        return _measured_flops(self, dtype)

    def memory(self) -> dict[str, int]:
        """Of torch_npu's allocator, and of the device."""
        free, total = self._npu.mem_get_info()
        return {
            "used": self._npu.memory_allocated(),
            "peak": self._npu.max_memory_allocated(),
            "free": free,
            "total": total,
        }


def repatch_arguments(config: Config) -> dict[str, Any]:
    """MindSpeed's arguments for a config: those that have one right value, the layout, and its fused operators.

    A micro batch is one packed sequence, whatever training.micro_batch_size puts together in it.
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


@functools.cache
def _pinned_store(platform: NPUPlatform) -> Any:
    from longvita.platforms.pinned_offload import PinnedStore

    # On the CPU, where a door is tested over stubs, there is no memory to pin.
    return PinnedStore(platform._npu, pinned=platform.device.type != "cpu")


@functools.cache
def _measured_flops(platform: NPUPlatform, dtype: torch.dtype) -> float:
    """Best of some matrix products, FLOP/s."""
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=platform.device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = []
    for _ in range(5):
        platform.synchronize()
        start = time.perf_counter()
        torch.mm(a, b)
        platform.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / min(seconds)


PLATFORM = NPUPlatform()
