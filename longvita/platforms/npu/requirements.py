"""Drivers and libraries that a machine with Ascend NPUs needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from packaging.version import Version

from longvita.platforms.base import importable
from longvita.platforms.requirements import MachineRequirement, installed_version
from longvita.platforms.versions import distribution_version
from longvita.processes import variable

CANN_TOOLKIT = "CANN toolkit"

CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where Huawei's installer puts the toolkit by default."""
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
"""What set_env.sh sets to the toolkit's folder."""
SET_ENVIRONMENT = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
TESTED_COMMIT = "e4772499"
"""MindSpeed's commit that the tests have run over (docs/hardware.md)."""
INSTALL_PACKAGES = "pip install -e '.[npu]' -c constraints.txt"
INSTALL_MINDSPEED = (
    "git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git ../MindSpeed && "
    f"git -C ../MindSpeed checkout {TESTED_COMMIT} && pip install --no-deps -e ../MindSpeed"
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
        _cann(),
        _torch_npu(),
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
        if not one.works and (one.module or one.name == CANN_TOOLKIT):
            lacks.setdefault(one.remedy, []).append(one.name)
    fixes = [f"{', '.join(names)}: {remedy}" for remedy, names in lacks.items()]
    fix = f"install what is missing, {'; '.join(fixes)}" if fixes else f"reinstall it: {INSTALL_MINDSPEED}"
    return (
        f"MindSpeed cannot be imported: {type(error).__name__}: {error}; fix: {fix}. `longvita doctor --platform npu` "
        "imports each package and names those that fail; MindSpeed is its branch core_r0.16.0 (the packages of that "
        "name on PyPI are placeholders)"
    )


def _cann() -> MachineRequirement:
    """The toolkit, with its compiler on PATH: triton-ascend starts it when MindSpeed is imported."""
    home = next(filter(None, map(variable, CANN_VARIABLES)), None) or (str(CANN) if CANN.exists() else None)
    compiler = shutil.which("bisheng") or variable("TRITON_NPU_COMPILER_PATH")
    install = f"bash Ascend-cann-toolkit_*_linux-$(uname -m).run --install && {SET_ENVIRONMENT}"
    purpose = "operators, collectives (hccl), and the compiler bisheng that triton-ascend starts at MindSpeed's import"
    fault = "" if compiler or home is None else "its compiler bisheng is not on PATH"
    return MachineRequirement(
        CANN_TOOLKIT, home or compiler, purpose, SET_ENVIRONMENT if fault else install, fault=fault
    )


def _torch_npu() -> MachineRequirement:
    """torch_npu, built for the release of torch that is installed."""
    found, torch = distribution_version("torch-npu"), distribution_version("torch")
    other = found is not None and torch is not None and Version(found).release != Version(torch).release
    fault = f"it needs torch of the same version, and torch {torch} is installed" if other else ""
    return MachineRequirement("torch-npu", found, "everything", INSTALL_PACKAGES, "torch_npu", fault=fault)


def _triton() -> MachineRequirement:
    """triton-ascend, alone: upstream triton has the same module, and rejects MindSpeed's kernels with a ValueError."""
    upstream = distribution_version("triton")
    own = installed_version("triton-ascend", "triton") if distribution_version("triton-ascend") else None
    fault = f"upstream triton {upstream} has its module and rejects MindSpeed's kernels" if upstream else ""
    if own is None and not upstream and importable("triton"):
        fault = "a module `triton` without a known package takes its place"
    purpose = "MindSpeed imports it; it has wheels for Python 3.11 alone"
    return MachineRequirement("triton-ascend", own, purpose, INSTALL_TRITON, "triton", fault=fault)
