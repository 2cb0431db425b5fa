"""Drivers and libraries that a machine with Ascend NPUs needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from longvita.platforms.requirements import MachineRequirement, installed_version

CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where Huawei's installer puts the toolkit."""
INSTALL_MINDSPEED = (
    "git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git && pip install --no-deps -e ./MindSpeed"
)
"""The packages of that name on PyPI are placeholders. --no-deps: its requirements would downgrade numpy below 1.26.1;
`requirements` lists the packages that it does import.
"""


def requirements() -> list[MachineRequirement]:
    """The requirements, each with its installed version or path."""
    return [
        MachineRequirement(
            "driver and firmware",
            shutil.which("npu-smi"),
            "the device",
            "sudo bash Ascend-hdk-*-npu-driver_*.run --full && sudo bash Ascend-hdk-*-npu-firmware_*.run --full",
        ),
        MachineRequirement(
            "CANN toolkit",
            str(CANN) if CANN.exists() else None,
            "operators and collectives (hccl)",
            "bash Ascend-cann-toolkit_*_linux-$(uname -m).run --install && source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh",
        ),
        MachineRequirement(
            "torch-npu",
            installed_version("torch-npu>=2.7.1", "torch_npu"),
            "everything",
            "pip install -e '.[npu]' -c constraints.txt",
        ),
        MachineRequirement(
            "mindspeed",
            installed_version("mindspeed", "mindspeed"),
            "layers and attention; PyPI's package of that name is a placeholder",
            INSTALL_MINDSPEED,
        ),
        *(
            MachineRequirement(name, installed_version(name, module), "MindSpeed imports it", f"pip install {name}")
            for name, module in (("einops", "einops"), ("scipy", "scipy"), ("triton-ascend", "triton"))
        ),
    ]
