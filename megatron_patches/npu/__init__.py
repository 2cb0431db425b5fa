"""What megatron-core needs to run on Ascend: MindSpeed, put in place in its order, and what MindSpeed leaves wrong.

MindSpeed is the branch core_r0.16.0 of github.com/Ascend/MindSpeed, which fits the plain megatron-core 0.16.1.
"""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches() -> list[Patch]:
    """Our own patches, on top of MindSpeed's replacements (megatron_patches.npu.adaptor.activate comes first)."""
    from megatron_patches.npu import frozen_weights

    return [*frozen_weights.PATCHES]
