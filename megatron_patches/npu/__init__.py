"""Changes that let megatron-core run on Ascend: MindSpeed, imported in the right order, and fixes of its faults.

MindSpeed is the branch core_r0.16.0 of github.com/Ascend/MindSpeed, which fits an unmodified megatron-core 0.16.1.
"""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches() -> list[Patch]:
    """Our own patches, on top of MindSpeed's replacements; megatron_patches.npu.adaptor.activate must precede them."""
    from megatron_patches.npu import frozen_weights, tensor_parallel

    return frozen_weights.PATCHES + tensor_parallel.PATCHES
