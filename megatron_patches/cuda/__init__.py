"""What megatron-core needs on Nvidia GPUs: an Adam whose checkpoints load where no fused one is installed, and a guard.

Layers are Transformer Engine's by ModuleSpec and subclass (longvita/platforms/cuda/te_layers.py), without a patch.
"""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches(own_adam: bool = True) -> list[Patch]:
    """The platform's patches. own_adam: neither Transformer Engine nor apex is there, so torch's Adam would be used.

    Imports the parts of megatron-core that they are about.
    """
    from megatron_patches.cpu import adam, pipeline

    return [*(adam.PATCHES if own_adam else ()), *pipeline.PATCHES]
