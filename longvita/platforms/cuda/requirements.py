"""Drivers and libraries that a machine with Nvidia GPUs needs."""

from __future__ import annotations

import shutil

import torch

from longvita.platforms.requirements import MachineRequirement, installed_version

APEX = "apex.optimizers"
"""A module that only Nvidia's apex has: PyPI has another project of that name."""
FLASH_ATTN = "flash_attn.flash_attn_interface"
"""The module that is used; the package flash-attn 4 has the same name and lacks this module."""
INSTALL_ENGINE = "pip install --no-build-isolation -e '.[gpu]' -c constraints.txt"


def requirements() -> list[MachineRequirement]:
    """The requirements, each with its installed version. They name versions of torch built for CUDA."""
    torch_for_cuda = torch.__version__ if torch.version.cuda else None
    return [
        MachineRequirement("driver", shutil.which("nvidia-smi"), "the device", "sudo ubuntu-drivers install --gpgpu"),
        MachineRequirement(
            "torch for CUDA", torch_for_cuda, "everything", "pip install --force-reinstall torch==2.13.0", "torch"
        ),
        MachineRequirement(
            "transformer-engine",
            installed_version("transformer-engine>=2.20", "transformer_engine"),
            "fused layers and attention, FP8; else megatron-core's own layers",
            INSTALL_ENGINE,
            "transformer_engine.pytorch",
            required=False,
        ),
        MachineRequirement(
            "flash-attn",
            installed_version("flash-attn", FLASH_ATTN),
            "attention without Transformer Engine, and generation; else torch's",
            "pip install --no-build-isolation flash-attn",
            FLASH_ATTN,
            required=False,
        ),
        MachineRequirement(
            "apex",
            installed_version("apex", APEX),
            "gradients accumulated within matrix products, fused Adam",
            "git clone https://github.com/NVIDIA/apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
            "--no-build-isolation ./apex",
            APEX,
            required=False,
        ),
    ]
