"""A driver or library that a machine with an accelerator needs; each platform lists its own in `requirements.py`."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.requirements import Requirement

from longvita.platforms.base import importable
from longvita.platforms.versions import distribution_version


@dataclass(frozen=True)
class MachineRequirement:
    """A driver or library that a machine with a platform's devices needs."""

    name: str
    found: str | None
    """Its version or path; None if it is missing."""
    purpose: str
    """What it is used for and, if it is optional, what is used without it."""
    remedy: str
    """The command that installs it."""
    module: str = ""
    """The module whose import shows that it works, if it is a package."""
    required: bool = True
    fault: str = ""
    """What keeps it from working although it is installed, as the end of a sentence that its name begins."""

    @property
    def works(self) -> bool:
        """Whether it is installed, and nothing is known that keeps it from working."""
        return self.found is not None and not self.fault


def installed_version(wanted: str, module: str) -> str | None:
    """The version of an installed package, "importable" if its metadata is missing.

    wanted: a requirement such as "torch-npu>=2.7.1". Returns None if `module` cannot be imported (on PyPI some of these
    names belong to other projects, so the name of the package proves nothing) or the version does not satisfy `wanted`.
    """
    if not importable(module):
        return None
    requirement = Requirement(wanted)
    version = distribution_version(requirement.name)
    if version is None:
        return "importable"
    return version if requirement.specifier.contains(version, prereleases=True) else None
