"""`longvita doctor`: the device, the versions, what is patched and why, and what is missing with its remedy."""

from __future__ import annotations

import importlib.metadata
import platform as machine
import shutil
from dataclasses import dataclass

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longvita import launcher, platforms
from longvita.platforms.base import OptionalPackage, Platform, PlatformError
from megatron_patches.patch import PatchError

PACKAGE = "longvita"
INSTALL = "bash scripts/setup.sh"
PROGRAMS = {"ffmpeg": ("cuts video files in the tests", "bash scripts/setup.sh --system, or apt-get install ffmpeg")}


@dataclass(frozen=True)
class Component:
    """Something the project uses: what is installed (None: nothing), what it wants, who needs it, how to get it."""

    name: str
    installed: str | None
    wanted: str
    needed_for: str
    required: bool
    fits: bool
    remedy: str


def run(platform: str = "auto", console: Console | None = None) -> int:
    """Prints the report; 0, or 1 if something is missing that the project cannot do without.

    Raises PlatformError for a platform that is not there.
    """
    console = console or Console()
    chosen = platforms.get(platform)
    components = [*python_packages(chosen), *programs()]
    _print_device(console, chosen)
    _print_versions(console, components)
    healthy = _print_patches(console, chosen)
    _print_decisions(console, chosen)
    missing = [component for component in components if not component.fits]
    _print_missing(console, missing)
    return 0 if healthy and not any(component.required for component in missing) else 1


def python_packages(platform: Platform) -> list[Component]:
    """What the package's own metadata asks for: the core and the platform's extra are required, other extras not."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Component(PACKAGE, None, "any", "everything", True, False, INSTALL)]
    requirements = [Requirement(line) for line in lines]
    components = [_package(requirement, "", True) for requirement in requirements if _applies(requirement, "")]
    extras = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    for extra in extras:
        if extra in platforms.ACCELERATOR_EXTRAS and extra != platform.extra:
            continue
        members = [requirement for requirement in requirements if _applies(requirement, extra)]
        required = extra == platform.extra and platform.extra_required
        named = {one.name for one in platform.optional_packages()}
        members = [requirement for requirement in members if requirement.name not in named]
        components += [_package(requirement, extra, required) for requirement in members]
    return components + [_optional(one) for one in platform.optional_packages()]


def programs() -> list[Component]:
    """Programs beside Python."""
    return [
        Component(name, shutil.which(name), "any", purpose, False, shutil.which(name) is not None, remedy)
        for name, (purpose, remedy) in PROGRAMS.items()
    ]


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether `extra` ("" for the core) is what asks for the requirement, on this machine."""
    if requirement.marker is None:
        return extra == ""
    in_core = requirement.marker.evaluate({"extra": ""})
    return in_core if extra == "" else requirement.marker.evaluate({"extra": extra}) and not in_core


def _package(requirement: Requirement, extra: str, required: bool) -> Component:
    try:
        installed: str | None = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return Component(
        name=requirement.name,
        installed=installed,
        wanted=str(requirement.specifier) or "any",
        needed_for=f"extra {extra}" if extra else "everything",
        required=required,
        fits=installed is not None and requirement.specifier.contains(installed, prereleases=True),
        remedy=f"pip install -e '.[{extra}]' -c constraints.txt" if extra else INSTALL,
    )


def _optional(package: OptionalPackage) -> Component:
    """What counts is whether it can be imported: on PyPI some of these names are other projects'."""
    there = package.is_there
    version = None
    if there:
        try:
            version = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            version = "importable"
    return Component(package.name, version, "any", package.purpose, False, there, package.remedy)


def _print_device(console: Console, platform: Platform) -> None:
    memory = {name: f"{size / 2**30:.1f} GiB" for name, size in platform.memory().items()}
    table = Table(title="Device", show_header=False)
    table.add_row("platform", f"{platform.name} (this version has: {', '.join(platforms.names())})")
    table.add_row("device", platform.describe())
    table.add_row("memory", ", ".join(f"{name} {size}" for name, size in memory.items()))
    table.add_row("collectives", platform.backend)
    for name, value in launcher.environment_of(platform).items():
        table.add_row("environment", f"{name}={value}")
    table.add_row("python", f"{machine.python_version()} on {machine.platform()}")
    console.print(table)


def _print_versions(console: Console, components: list[Component]) -> None:
    table = Table("name", "installed", "wanted", "needed for", title="Versions")
    for component in components:
        style = None if component.fits else "red" if component.required else "yellow"
        installed = component.installed or "missing"
        table.add_row(component.name, installed, component.wanted, component.needed_for, style=style)
    console.print(table)


def _print_patches(console: Console, platform: Platform) -> bool:
    """Applies the platform's patches and lists them, those with one reason together; False if one does not fit."""
    try:
        applied = platform.activate()
    except (PatchError, PlatformError, ImportError) as error:
        console.print(Text(f"Patches cannot be applied: {error}", style="red"))
        return False
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in applied:
        reasons.setdefault((one.patch.why, one.patch.remove_when, one.patch.versions), []).append(one.patch.target)
    table = Table(title=f"Patches ({len(applied)})", show_lines=True)
    table.add_column("target", overflow="fold", ratio=1)
    table.add_column("why, until when, for what", ratio=1)
    for (why, until, versions), targets in reasons.items():
        table.add_row(Text("\n".join(targets)), Text(f"{why}\nuntil {until}\nfor {versions}"))
    console.print(table)
    return True


def _print_decisions(console: Console, platform: Platform) -> None:
    """After the patches, which it may count."""
    decisions = platform.decisions()
    if decisions:
        table = Table("what", "here", title="Decided by the platform, not by the config")
        for what, here in decisions:
            table.add_row(what, here)
        console.print(table)


def _print_missing(console: Console, missing: list[Component]) -> None:
    if not missing:
        console.print("Nothing is missing.")
        return
    table = Table("name", "state", "needed for", "remedy", title="Missing")
    for component in missing:
        state = f"{component.installed} installed, {component.wanted} wanted" if component.installed else "missing"
        needed = component.needed_for if component.required else f"{component.needed_for} (optional)"
        style = "red" if component.required else "yellow"
        table.add_row(component.name, state, needed, Text(component.remedy), style=style)
    console.print(table)
