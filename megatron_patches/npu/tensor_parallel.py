"""MindSpeed's tensor-parallel size and group, read at each use."""

from __future__ import annotations

from typing import Any

from megatron_patches.patch import Patch

OWNER = "mindspeed.te.pytorch.module.ops.comm_overlap_ops:CommOverlapConfig"
WHY = (
    "the first forward pass of a process stores the size and the group for good: after a stage at another TP, "
    "row-parallel layers reduce over the old group, so the loss is silently wrong or a pipeline stage hangs"
)
REMOVE_WHEN = "MindSpeed reads them from parallel_state, or repatch() clears them"


def tensor_parallel_size(cls: Any) -> int:
    """Size of the present tensor-parallel group."""
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_parallel_group(cls: Any) -> Any:
    """The present tensor-parallel group."""
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


PATCHES = [
    Patch(
        target=f"{OWNER}.{name}",
        replacement=classmethod(replacement),
        why=WHY,
        remove_when=REMOVE_WHEN,
        signature=f"classmethod def {name}(cls)",
    )
    for name, replacement in (("get_tp_size", tensor_parallel_size), ("get_tp_group", tensor_parallel_group))
]
