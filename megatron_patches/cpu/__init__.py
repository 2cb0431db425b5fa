"""What megatron-core needs to run on CPU and gloo."""

from __future__ import annotations

from megatron_patches.patch import Patch


def patches() -> list[Patch]:
    """The CPU platform's patches. Imports the parts of megatron-core that they are about."""
    from megatron_patches.cpu import adam, pipeline, rng, tensor_methods, torch_names

    return [
        *torch_names.PATCHES,
        *tensor_methods.PATCHES,
        *rng.PATCHES,
        *adam.PATCHES,
        *pipeline.PATCHES,
    ]
