"""Patches on Nvidia GPUs: an Adam whose checkpoints load if no fused one is installed, and a check of batched messages.

Transformer Engine's layers need no patch: they are set by ModuleSpec and subclass
(longvita/platforms/cuda/te_layers.py).
"""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches(own_adam: bool = True) -> list[Patch]:
    """The platform's patches. Imports the patched parts of megatron-core.

    own_adam: replace torch's Adam, which megatron-core uses if neither Transformer Engine nor apex is installed.
    """
    from megatron_patches.shared import adam, pipeline

    return [*(adam.PATCHES if own_adam else ()), *pipeline.PATCHES]
