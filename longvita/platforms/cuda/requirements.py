"""Drivers and libraries that a machine with Nvidia GPUs needs."""

from __future__ import annotations

import importlib.metadata
import re
import shutil

import torch

from longvita.platforms.requirements import MachineRequirement, installed_version

APEX = "apex.optimizers"
"""A module that only Nvidia's apex has: PyPI has another project of that name."""
FLASH_ATTN = "flash_attn.flash_attn_interface"
"""The module that is used; the package flash-attn 4 has the same name and lacks this module."""
INSTALL_ENGINE = "pip install --no-build-isolation -e '.[gpu]' -c constraints.txt"
"""With torch installed before: Transformer Engine is built for the torch that is there, or else for the newest."""


def requirements() -> list[MachineRequirement]:
    """The requirements, each with its installed version. They name versions of torch built for CUDA."""
    torch_for_cuda = torch.__version__ if torch.version.cuda else None
    engine_fault = other_cuda_version()
    return [
        MachineRequirement("driver", shutil.which("nvidia-smi"), "the device", "sudo ubuntu-drivers install --gpgpu"),
        MachineRequirement(
            "torch for CUDA", torch_for_cuda, "everything", "pip install --force-reinstall torch==2.13.0", "torch"
        ),
        MachineRequirement(
            "transformer-engine",
            installed_version("transformer-engine>=2.20", "transformer_engine"),
            "fused layers and attention, FP8; else megatron-core's own layers",
            reinstall_engine() if engine_fault else INSTALL_ENGINE,
            "transformer_engine.pytorch",
            required=False,
            fault=engine_fault,
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


def other_cuda_version() -> str:
    """What keeps Transformer Engine's libraries from PyPI from working with the installed torch; "" if nothing.

    There is a package of them for each CUDA version. A Transformer Engine that was built from source has none.
    """
    built_for = [package.rpartition("-cu")[2] for package in _engine_libraries()]
    if len(built_for) > 1:
        return f"is installed for CUDA {' and '.join(built_for)}, whose libraries overwrite each other"
    if not built_for or torch.version.cuda is None or built_for[0] == torch.version.cuda.partition(".")[0]:
        return ""
    return f"is built for CUDA {built_for[0]}, and torch {torch.__version__} for CUDA {torch.version.cuda}"


def reinstall_engine() -> str:
    """The command that installs Transformer Engine for the installed torch, in place of the one that is there.

    Without pip's cache, which has the wheel that was built for the other torch.
    """
    packages = " ".join(["transformer-engine", "transformer-engine-torch", *_engine_libraries()])
    return f"pip uninstall --yes {packages} && {INSTALL_ENGINE} --no-cache-dir"


def _engine_libraries() -> list[str]:
    names = {re.sub(r"[-_.]+", "-", one.name).lower() for one in importlib.metadata.distributions() if one.name}
    return sorted(name for name in names if re.fullmatch(r"transformer-engine-cu\d+", name))
