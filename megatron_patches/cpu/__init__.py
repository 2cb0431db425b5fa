"""Patches that let megatron-core run on CPU and gloo."""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches() -> list[Patch]:
    """The CPU platform's patches. Imports the patched parts of megatron-core."""
    from megatron_patches.cpu import rng, tensor_methods, torch_names
    from megatron_patches.shared import adam, pipeline

    return [
        *torch_names.PATCHES,
        *tensor_methods.PATCHES,
        *rng.PATCHES,
        *adam.PATCHES,
        *pipeline.PATCHES,
    ]
