"""The name `torch` in the modules of megatron-core that use the device "cuda"."""

from __future__ import annotations

from megatron_patches.cpu.torch_view import TorchView
from megatron_patches.patch import Patch

MODULES = (
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.mapping",
    "dist_checkpointing.strategies.async_utils",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.fully_parallel",
    "dist_checkpointing.strategies.state_dict_saver",
    "distributed.distributed_data_parallel",
    "distributed.param_and_grad_buffer",
    "models.common.embeddings.rope_utils",
    "models.common.embeddings.rotary_pos_embedding",
    "optimizer.clip_grads",
    "optimizer.distrib_optimizer",
    "optimizer.optimizer",
    "parallel_state",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "tensor_parallel.data",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "tensor_parallel.random",
    "tensor_parallel.utils",
    "timers",
    "utils",
)

VIEW = TorchView()

PATCHES = [
    Patch(
        target=f"megatron.core.{module}:torch",
        replacement=VIEW,
        why='calls torch.cuda for the device and creates tensors with device="cuda"',
        remove_when="megatron-core takes the device as an argument",
        signature="module torch",
    )
    for module in MODULES
]
