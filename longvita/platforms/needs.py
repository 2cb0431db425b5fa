"""What a machine of each accelerator needs, whether it is here, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where Huawei's installer puts the toolkit."""


@dataclass(frozen=True)
class Need:
    """Something that an accelerator's machine needs."""

    name: str
    found: str | None
    """Its version or place; None where it is missing."""
    purpose: str
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
            _version("transformer-engine"),
            "the fastest layers and attention, FP8",
            "pip install --no-build-isolation -e '.[gpu]' -c constraints.txt",
            required=False,
        ),
        Need(
            "flash-attn",
            _version("flash-attn"),
            "attention without Transformer Engine; torch's own otherwise",
            "pip install --no-build-isolation flash-attn",
            required=False,
        ),
        Need(
            "apex",
            _module("amp_C"),
            "fused Adam, gradients accumulated within matrix products",
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
        Need("torch-npu", _version("torch-npu"), "everything", "pip install -e '.[npu]' -c constraints.txt"),
        Need(
            "mindspeed",
            _version("mindspeed"),
            "layers, attention, context parallelism (the package of that name on PyPI is a placeholder)",
            "git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git && pip install -e ./MindSpeed",
        ),
    ]


NEEDS = {"cuda": ("Nvidia", nvidia_needs), "npu": ("Ascend", ascend_needs)}
"""By the name of a platform: its maker, and what a machine needs."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module(name: str) -> str | None:
    return "installed" if importlib.util.find_spec(name) is not None else None


def _torch_for_cuda() -> str | None:
    import torch

    return torch.__version__ if torch.version.cuda else None
