"""Drivers and libraries that a machine with Ascend NPUs needs."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from longvita.platforms.requirements import MachineRequirement, installed_version

CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where Huawei's installer puts the toolkit."""
SET_ENVIRONMENT = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
COMPILER = "CANN compiler"
"""bisheng, which triton-ascend starts when MindSpeed is imported."""
INSTALL_PACKAGES = "pip install -e '.[npu]' -c constraints.txt"
INSTALL_MINDSPEED = (
    "git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git && pip install --no-deps -e ./MindSpeed"
)
"""The packages of that name on PyPI are placeholders. --no-deps: its requirements would downgrade numpy below 1.26.1;
the extra `npu` lists the packages that it does import.
"""
INSTALL_TRITON = "pip uninstall --yes triton triton-ascend && pip install --no-deps triton-ascend -c constraints.txt"
"""torch from PyPI requires upstream triton. Both packages install the module `triton`, so removing one breaks the
other, and pip would bring upstream triton back with torch's dependencies.
"""
IMPORTED_BY_MINDSPEED = ("einops", "scipy", "pybind11")


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
            f"bash Ascend-cann-toolkit_*_linux-$(uname -m).run --install && {SET_ENVIRONMENT}",
        ),
        MachineRequirement(
            COMPILER,
            shutil.which("bisheng"),
            "triton-ascend starts it at MindSpeed's import, unless TRITON_NPU_COMPILER_PATH names another",
            SET_ENVIRONMENT,
            required=False,
        ),
        MachineRequirement(
            "torch-npu", installed_version("torch-npu>=2.7.1", "torch_npu"), "everything", INSTALL_PACKAGES, "torch_npu"
        ),
        *(
            MachineRequirement(name, installed_version(name, name), "MindSpeed imports it", INSTALL_PACKAGES, name)
            for name in IMPORTED_BY_MINDSPEED
        ),
        _triton(),
        MachineRequirement(
            "mindspeed",
            installed_version("mindspeed", "mindspeed"),
            "layers and attention; PyPI's package of that name is a placeholder",
            INSTALL_MINDSPEED,
            "mindspeed.megatron_adaptor",
        ),
    ]


def import_failure(error: Exception) -> str:
    """The message for an import of MindSpeed that raised `error`: what failed, and what its import lacks here."""
    lacks: dict[str, list[str]] = {}
    for one in requirements():
        if not one.works and (one.module or one.name == COMPILER):
            lacks.setdefault(one.remedy, []).append(one.name)
    fixes = [f"{', '.join(names)}: {remedy}" for remedy, names in lacks.items()]
    fix = f"install what is missing, {'; '.join(fixes)}" if fixes else f"reinstall it: {INSTALL_MINDSPEED}"
    return (
        f"MindSpeed cannot be imported: {type(error).__name__}: {error}; fix: {fix}. `longvita doctor --platform npu` "
        "imports each package and names those that fail; MindSpeed is its branch core_r0.16.0 (the packages of that "
        "name on PyPI are placeholders)"
    )


def _triton() -> MachineRequirement:
    """triton-ascend, alone: upstream triton has the same module, and rejects MindSpeed's kernels with a ValueError."""
    upstream = _version("triton")
    own = installed_version("triton-ascend", "triton") if _version("triton-ascend") else None
    fault = f"upstream triton {upstream} has its module and rejects MindSpeed's kernels" if upstream else ""
    purpose = "MindSpeed imports it; it has wheels for Python 3.11 alone"
    return MachineRequirement("triton-ascend", own, purpose, INSTALL_TRITON, "triton", fault=fault)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
