"""The Ascend platform over the stubs of torch_npu and MindSpeed, on the CPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent / "ascend"


def install(mindspeed_source: str | None = None) -> None:
    """Put the stubs on the import path of this process, and MindSpeed itself if `mindspeed_source` is given."""
    paths = [str(ROOT)] if mindspeed_source is None else [mindspeed_source, str(ROOT)]
    sys.path[:0] = [path for path in paths if path not in sys.path]


@contextlib.contextmanager
def torch_npu_alone() -> Iterator[Any]:
    """The stub of torch_npu in this process, removed completely afterwards."""
    install()
    try:
        import torch_npu

        yield torch_npu
    finally:
        sys.path.remove(str(ROOT))
        for name in [name for name in sys.modules if name.split(".")[0] == "torch_npu"]:
            del sys.modules[name]
        del torch.npu


def _replace_triton_driver() -> None:
    """Let MindSpeed's kernels be defined without CANN: they ask triton-ascend's driver for a timer, and none runs."""
    from triton.runtime.driver import driver

    class NoDevice:
        def get_benchmarker(self) -> Any:
            return None

    driver.set_active(NoDevice())


def platform(mindspeed_source: str | None = None) -> Any:
    """The inactive platform. Use a process of its own: megatron-core must not have been imported."""
    install(mindspeed_source)
    if mindspeed_source is not None:
        from tests.stubs.every_device import make_every_device_the_cpu

        make_every_device_the_cpu()
        _replace_triton_driver()
    from longvita.platforms.npu.platform import NPUPlatform

    class NPUOverStubs(NPUPlatform):
        """The platform with tensors on the CPU, and gloo."""

        backend = "gloo"

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

        def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
            """gloo still reads the outputs that stages of an interleaved pipeline free after starting a message."""
            frees = {"deallocate_pipeline_outputs": False} if virtual_pipeline > 1 else {}
            return super().transformer_config_overrides(virtual_pipeline) | frees

        def patches(self) -> list:
            """The CPU platform's patches, except for the optimizer and the names that MindSpeed replaces."""
            from megatron_patches import cpu
            from megatron_patches.npu.adaptor import replaced_names
            from megatron_patches.shared import adam

            taken = {*replaced_names(), *(patch.target.replace(":", ".") for patch in adam.PATCHES)}
            return [patch for patch in cpu.patches() if patch.target.replace(":", ".") not in taken] + super().patches()

    return NPUOverStubs()
