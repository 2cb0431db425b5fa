"""`longvita doctor`: the device, what is missing with its remedy, what an accelerator would need; on one screen."""

from __future__ import annotations

import platform as machine
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longvita import platforms, processes
from longvita.doctor.components import Component, programs, python_packages
from longvita.platforms.base import Platform, PlatformError
from longvita.platforms.requirements import MachineRequirement
from megatron_patches.patch import AppliedPatch, PatchError

LEADING = ("megatron-core", "torch", "transformers", "numpy")
"""Packages whose versions the summary tells."""


def run(platform: str = "auto", everything: bool = False, console: Console | None = None) -> int:
    """Prints the report; 0, or 1 if something is missing that the project, or the platform, cannot do without.

    everything: every version and every patch too. A platform whose device is not here is told what it needs. Raises
    PlatformError for a name without a platform.
    """
    console = console or Console()
    chosen = platforms.get() if platform == "auto" else platforms.named(platform)
    components = [*python_packages(), *programs()]
    if chosen.is_available():
        applied, failure = _activate(chosen)
        _print_summary(console, chosen, components, applied, failure)
        _print_decisions(console, chosen)
    else:
        applied, failure = [], f"platform {chosen.name} finds no device on this machine"
        console.print(Text(failure, style="red"))
    if everything:
        _print_versions(console, components)
        _print_patches(console, applied)
    missing = [component for component in components if not component.fits]
    _print_missing(console, missing)
    own = chosen.requirements()
    for one in [chosen] if own else map(platforms.named, sorted(platforms.NAMES)):
        if requirements := one.requirements():
            _print_requirements(console, one.maker, requirements)
    lacks = any(one.required and one.found is None for one in own)
    return 1 if failure or lacks or any(component.required for component in missing) else 0


def _activate(platform: Platform) -> tuple[list[AppliedPatch], str]:
    """The platform's patches, in place now, and why they are not."""
    try:
        return platform.activate(), ""
    except (PatchError, PlatformError, ImportError) as error:
        return [], f"cannot be applied: {error}"


def _print_summary(
    console: Console, platform: Platform, components: Sequence[Component], applied: Sequence[AppliedPatch], failure: str
) -> None:
    memory = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in platform.memory().items())
    required = [component for component in components if component.required]
    fitting = [component for component in required if component.fits]
    leading = ", ".join(f"{one.name} {one.installed}" for one in fitting if one.name in LEADING)
    table = Table(title="This machine", show_header=False)
    table.add_row("platform", f"{platform.name} (this version has: {', '.join(platforms.NAMES)})")
    table.add_row("device", platform.describe())
    table.add_row("memory", memory)
    table.add_row("collectives", platform.backend)
    for name, value in processes.with_defaults(platform.environment()).items():
        table.add_row("environment", f"{name}={value}")
    table.add_row("python", f"{machine.python_version()} on {machine.platform()}")
    table.add_row("packages", f"{len(fitting)} of the {len(required)} required are here: {leading}")
    table.add_row("patches", Text(failure, style="red") if failure else f"{len(applied)} in place; why: --all")
    console.print(table)


def _print_decisions(console: Console, platform: Platform) -> None:
    """After the patches, which it may count."""
    decisions = platform.decisions()
    if decisions:
        table = Table("what", "here", title="Decided by the platform, not by the config")
        for what, here in decisions:
            table.add_row(what, here)
        console.print(table)


def _print_versions(console: Console, components: Sequence[Component]) -> None:
    table = Table("name", "installed", "wanted", "needed for", title="Versions")
    for component in components:
        style = None if component.fits else "red" if component.required else "yellow"
        installed = component.installed or "missing"
        table.add_row(component.name, installed, component.wanted, component.needed_for, style=style)
    console.print(table)


def _print_patches(console: Console, applied: Sequence[AppliedPatch]) -> None:
    """Lists patches, those with one reason together."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in applied:
        reasons.setdefault((one.patch.why, one.patch.remove_when, one.patch.versions), []).append(one.patch.target)
    table = Table(title=f"Patches ({len(applied)})", show_lines=True)
    table.add_column("target", overflow="fold", ratio=1)
    table.add_column("why, until when, for what", ratio=1)
    for (why, until, versions), targets in reasons.items():
        table.add_row(Text("\n".join(targets)), Text(f"{why}\nuntil {until}\nfor {versions}"))
    console.print(table)


def _print_missing(console: Console, missing: Sequence[Component]) -> None:
    """What is missing, by the command that brings it."""
    by_remedy: dict[tuple[str, str, bool], list[str]] = {}
    for component in missing:
        state = f" ({component.installed} installed, {component.wanted} wanted)" if component.installed else ""
        needed = component.needed_for if component.required else f"{component.needed_for}, optional"
        by_remedy.setdefault((needed, component.remedy, component.required), []).append(f"{component.name}{state}")
    _print_title(console, "Missing" if missing else "Nothing is missing")
    for (needed, remedy, required), names in by_remedy.items():
        _print_lack(console, f"{', '.join(names)}: missing ({needed})", remedy, "red" if required else "yellow")


def _print_requirements(console: Console, maker: str, requirements: Sequence[MachineRequirement]) -> None:
    _print_title(console, f"What a machine with {maker}'s devices needs")
    for one in requirements:
        purpose = one.purpose if one.required else f"{one.purpose}, optional"
        if one.found:
            console.print(Text(f"{one.name}: {one.found} ({purpose})"))
        else:
            _print_lack(console, f"{one.name}: missing ({purpose})", one.remedy, "")


def _print_title(console: Console, title: str) -> None:
    console.print(Text(title, style="bold"))


def _print_lack(console: Console, what: str, remedy: str, style: str) -> None:
    """Two lines; a command stays on one, to be copied."""
    console.print(Text(what, style=style), soft_wrap=True)
    console.print(Text(f"    {remedy}", style="cyan"), soft_wrap=True)
