"""The packages and programs of the project: installed and required versions, and the command that installs each."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Iterable
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from packaging.version import Version

from longvita import platforms
from longvita.platforms.versions import distribution_version

PACKAGE = "longvita"
INSTALL = "bash scripts/setup.sh"
INSTALL_PROGRAMS = "bash scripts/setup.sh --system (as root, on Debian)"
PROGRAMS = {"ffmpeg": ("cuts video files in the tests", "bash scripts/setup.sh --system, or apt-get install ffmpeg")}


@dataclasses.dataclass(frozen=True)
class Component:
    """A package or program: its installed version (None: missing), the required one, what needs it, the fix."""

    name: str
    installed: str | None
    wanted: str
    needed_for: str
    required: bool
    fits: bool
    remedy: str
    module: str = ""
    """The module whose import shows that it works; "" for what is not a Python package, or is missing."""
    fault: str = ""
    """What keeps it from working although it is installed."""

    @property
    def works(self) -> bool:
        """Whether the required version is installed, and nothing is known that keeps it from working."""
        return self.fits and not self.fault


def python_packages() -> list[Component]:
    """Packages in the metadata of this one: required for the core and the platform, optional for other extras."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Component(PACKAGE, None, "any", "everything", True, False, INSTALL)]
    requirements = [Requirement(line) for line in lines]
    components = [_package(requirement, "", True) for requirement in requirements if _applies(requirement, "")]
    extras = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    for extra in extras:
        if extra in platforms.ACCELERATOR_EXTRAS:
            continue  # Platform.requirements lists theirs.
        members = [requirement for requirement in requirements if _applies(requirement, extra)]
        components += [_package(requirement, extra, False) for requirement in members]
    return components


def export_packages() -> list[Component]:
    """Packages that other software needs to load an exported folder: torchvision of the version that goes with torch.

    It belongs to no extra: its build must be torch's own, from torch's index. Releases are made together, and torch 2.N
    goes with torchvision 0.(N + 15).
    """
    installed = distribution_version("torch")
    if installed is None:
        return []
    torch = Version(installed)
    wanted = Requirement(f"torchvision==0.{torch.minor + 15}.*")
    index = f" --index-url https://download.pytorch.org/whl/{torch.local}" if torch.local else ""
    found = _package(wanted, "", False)
    purpose = "AutoProcessor on a folder of the internvl format"
    return [dataclasses.replace(found, needed_for=purpose, remedy=f"pip install '{wanted}'{index}")]


def programs() -> list[Component]:
    """Programs outside of Python."""
    return [
        Component(name, shutil.which(name), "any", purpose, False, shutil.which(name) is not None, remedy)
        for name, (purpose, remedy) in PROGRAMS.items()
    ]


def missing_programs(names: Iterable[str], search_path: str | None = None) -> str:
    """The message about programs that are not on PATH, or not on `search_path`; "" if all are there."""
    missing = [name for name in names if shutil.which(name, path=search_path) is None]
    return f"not installed: {', '.join(missing)}; fix: {INSTALL_PROGRAMS}" if missing else ""


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether the requirement belongs to `extra` ("" for the core) on this machine."""
    if requirement.marker is None:
        return extra == ""
    in_core = requirement.marker.evaluate({"extra": ""})
    return in_core if extra == "" else requirement.marker.evaluate({"extra": extra}) and not in_core


def _package(requirement: Requirement, extra: str, required: bool) -> Component:
    installed = distribution_version(requirement.name)
    return Component(
        name=requirement.name,
        installed=installed,
        wanted=str(requirement.specifier) or "any",
        needed_for=f"extra {extra}" if extra else "everything",
        required=required,
        fits=installed is not None and requirement.specifier.contains(installed, prereleases=True),
        remedy=f"pip install -e '.[{extra}]' -c constraints.txt" if extra else INSTALL,
        module="" if installed is None else _module(requirement.name),
    )


def _module(distribution: str) -> str:
    """The package or module that a distribution installs: the one named after it, else the first at the top.

    "" if it installs none, as a package of types alone.
    """
    files = importlib.metadata.files(distribution) or []
    paths = [PurePosixPath(path) for path in files if path.suffix == ".py"]
    modules = [(path.parent if path.name == "__init__.py" else path.with_suffix("")).parts for path in paths]
    public = [parts for parts in modules if all(part.isidentifier() and part[0] != "_" for part in parts)]
    # "megatron-core" is the package megatron.core; "scikit-learn" is sklearn.
    own = distribution.replace("-", "_").lower()
    named = [parts for parts in public if "_".join(parts) == own]
    best = min(named or public, key=lambda parts: (len(parts), parts), default=None)
    return ".".join(best) if best else ""
