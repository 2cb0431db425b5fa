"""What a machine of each accelerator needs, whether it is here, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from longvita.platforms.base import importable

CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where Huawei's installer puts the toolkit."""
APEX = "apex.optimizers"
"""A module of Nvidia's apex alone: PyPI has another project of that name."""
FLASH_ATTN = "flash_attn.flash_attn_interface"
"""The module that is used; flash-attn 4 brings a package of the same name without it."""
INSTALL_ENGINE = "pip install --no-build-isolation -e '.[gpu]' -c constraints.txt"
INSTALL_MINDSPEED = (
    "git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git && pip install --no-deps -e ./MindSpeed"
)
"""The packages of that name on PyPI are placeholders. Its requirements would take numpy back below 1.26.1; what it
imports of them has a line of its own in `ascend_needs`.
"""


@dataclass(frozen=True)
class Need:
    """Something that an accelerator's machine needs."""

    name: str
    found: str | None
    """Its version or place; None where it is missing."""
    purpose: str
    """What it is for, and of what is optional, what is done without it."""
    remedy: str
    """The command that brings it."""
    required: bool = True


def nvidia_needs() -> list[Need]:
    """Of a machine with Nvidia's GPUs. Its versions of torch are those built for CUDA."""
    return [
        Need("driver", shutil.which("nvidia-smi"), "the device", "sudo ubuntu-drivers install --gpgpu"),
        Need("torch for CUDA", _torch_for_cuda(), "everything", "pip install --force-reinstall torch==2.13.0"),
        Need(
            "transformer-engine",
            _version("transformer-engine>=2.20", "transformer_engine"),
            "fused layers and attention, FP8; else megatron-core's own layers",
            INSTALL_ENGINE,
            required=False,
        ),
        Need(
            "flash-attn",
            _version("flash-attn", FLASH_ATTN),
            "attention without Transformer Engine, and generation; else torch's",
            "pip install --no-build-isolation flash-attn",
            required=False,
        ),
        Need(
            "apex",
            _version("apex", APEX),
            "gradients accumulated within matrix products, fused Adam",
            "git clone https://github.com/NVIDIA/apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
            "--no-build-isolation ./apex",
            required=False,
        ),
    ]


def ascend_needs() -> list[Need]:
    """Of a machine with Huawei's NPUs."""
    return [
        Need(
            "driver and firmware",
            shutil.which("npu-smi"),
            "the device",
            "sudo bash Ascend-hdk-*-npu-driver_*.run --full && sudo bash Ascend-hdk-*-npu-firmware_*.run --full",
        ),
        Need(
            "CANN toolkit",
            str(CANN) if CANN.exists() else None,
            "operators and collectives (hccl)",
            "bash Ascend-cann-toolkit_*_linux-$(uname -m).run --install && source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh",
        ),
        Need(
            "torch-npu",
            _version("torch-npu>=2.7.1", "torch_npu"),
            "everything",
            "pip install -e '.[npu]' -c constraints.txt",
        ),
        Need(
            "mindspeed",
            _version("mindspeed", "mindspeed"),
            "layers and attention; PyPI's package of that name is a placeholder",
            INSTALL_MINDSPEED,
        ),
        *(
            Need(name, _version(name, module), "MindSpeed imports it", f"pip install {name}")
            for name, module in (("einops", "einops"), ("scipy", "scipy"), ("triton-ascend", "triton"))
        ),
    ]


NEEDS = {"cuda": ("Nvidia", nvidia_needs), "npu": ("Ascend", ascend_needs)}
"""By the name of a platform: its maker, and what a machine needs."""


def _version(wanted: str, module: str) -> str | None:
    """The version of a package whose module can be imported; None where that fails or it is not the wanted one.

    What counts is the module: on PyPI some of these names are other projects'.
    """
    if not importable(module):
        return None
    requirement = Requirement(wanted)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "importable"
    return version if requirement.specifier.contains(version, prereleases=True) else None


def _torch_for_cuda() -> str | None:
    import torch

    return torch.__version__ if torch.version.cuda else None
