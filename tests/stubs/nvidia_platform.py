"""The Nvidia platform over the stubs of Transformer Engine or flash-attn, on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent
Library = Literal["te", "flash", "none"]
"""Transformer Engine, flash-attn without it, or torch's own kernel."""


def install(library: Library) -> None:
    """Put the stub on the import path. It must precede imports of megatron-core, which looks for the library once."""
    if "megatron.core" in sys.modules:
        raise RuntimeError("megatron-core is imported already and would not find the stub")
    if library != "none":
        sys.path.insert(0, str(ROOT / library))


def platform(library: Library = "te") -> Any:
    """The inactive platform. Use a process of its own."""
    install(library)
    from longvita.platforms.cpu.platform import CPUPlatform
    from longvita.platforms.cuda.platform import CUDAPlatform

    class NvidiaOverStubs(CUDAPlatform):
        """The platform with the CPU as device, gloo, and fp32 for comparisons."""

        backend = "gloo"
        device = CPUPlatform.device
        set_device = CPUPlatform.set_device
        synchronize = CPUPlatform.synchronize
        offload = CPUPlatform.offload
        generator = CPUPlatform.generator
        memory = CPUPlatform.memory
        peak_flops = CPUPlatform.peak_flops

        def is_available(self) -> bool:
            return True

        def capability(self) -> tuple[int, int]:
            return 9, 0

        def problems(self, config: Any) -> list:
            """Without the refusal of fp32, which the stub's attention supports."""
            return [problem for problem in super().problems(config) if problem.field != "training.precision"]

        def kernel(self) -> Any:
            return super().kernel() if library != "none" else _torch_kernel()

        def patches(self) -> list:
            """The CPU platform's patches. The fused Adam and the wrappers of Transformer Engine use the stub."""
            from megatron_patches import cpu
            from megatron_patches.cpu import torch_names
            from megatron_patches.patch import Patch
            from megatron_patches.shared import adam

            own = super().patches()
            others = [one for one in cpu.patches() if one not in own and one not in adam.PATCHES]
            view = Patch(
                target="megatron.core.extensions.transformer_engine:torch",
                replacement=torch_names.VIEW,
                why="calls torch.cuda for the device and for streams",
                remove_when="never: for tests only",
                signature="module torch",
            )
            return [*own, *others, *([view] if library == "te" else [])]

        def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
            """Without settings that compile kernels."""
            return super().transformer_config_overrides(virtual_pipeline) | {
                "bias_activation_fusion": False,
                "bias_dropout_fusion": False,
                "batch_p2p_comm": False,
            }

    return NvidiaOverStubs()


def _torch_kernel() -> Any:
    """torch's kernel with stubs of its two operators, which do not exist on the CPU."""
    from longvita.platforms.cuda.flash_kernels import TorchFlashKernel
    from tests.stubs import aten_flash

    return TorchFlashKernel(aten_flash.flash_attention_forward, aten_flash.flash_attention_backward)
