"""The report of `longvita doctor`: the machine, versions, patches, missing packages and what an accelerator needs."""

from __future__ import annotations

import platform as machine
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longvita import platforms
from longvita.doctor.components import Component
from longvita.platforms.base import Platform
from longvita.platforms.requirements import MachineRequirement
from longvita.processes import with_defaults
from megatron_patches.patch import Patch

LEADING = ("megatron-core", "torch", "transformers", "numpy")
"""Packages whose versions the summary shows."""


def print_summary(
    console: Console, platform: Platform, components: Sequence[Component], applied: Sequence[Patch], failure: str
) -> None:
    """Print the platform, its device, and what of the project is installed and in place."""
    memory = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in platform.memory().items())
    required = [component for component in components if component.required]
    fitting = [component for component in required if component.works]
    leading = ", ".join(f"{one.name} {one.installed}" for one in fitting if one.name in LEADING)
    table = Table(title="This machine", show_header=False)
    table.add_row("platform", f"{platform.name} (this version has: {', '.join(platforms.NAMES)})")
    table.add_row("device", platform.describe())
    table.add_row("memory", memory)
    table.add_row("collectives", platform.backend)
    for name, value in with_defaults(platform.environment()).items():
        table.add_row("environment", f"{name}={value}")
    table.add_row("python", f"{machine.python_version()} on {machine.platform()}")
    table.add_row("packages", f"{len(fitting)} of the {len(required)} required are here: {leading}")
    table.add_row("patches", Text(failure, style="red") if failure else f"{len(applied)} in place; why: --all")
    console.print(table)


def print_decisions(console: Console, platform: Platform) -> None:
    """Print what the platform decides; after the patches, which it may count."""
    decisions = platform.decisions()
    if decisions:
        table = Table("what", "here", title="Decided by the platform, not by the config")
        for what, here in decisions:
            table.add_row(what, here)
        console.print(table)


def print_versions(console: Console, components: Sequence[Component]) -> None:
    """Print the version of every package and program."""
    table = Table("name", "installed", "wanted", "needed for", title="Versions")
    for component in components:
        style = None if component.works else "red" if component.required else "yellow"
        installed = component.installed or "missing"
        table.add_row(component.name, installed, component.wanted, component.needed_for, style=style)
    console.print(table)


def print_patches(console: Console, applied: Sequence[Patch]) -> None:
    """Print the patches, those with one reason in one row."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in applied:
        reasons.setdefault((one.why, one.remove_when, one.versions), []).append(one.target)
    table = Table(title=f"Patches ({len(applied)})", show_lines=True)
    table.add_column("target", overflow="fold", ratio=1)
    table.add_column("why, until when, for what", ratio=1)
    for (why, until, versions), targets in reasons.items():
        table.add_row(Text("\n".join(targets)), Text(f"{why}\nuntil {until}\nfor {versions}"))
    console.print(table)


def print_missing(console: Console, missing: Sequence[Component]) -> None:
    """Print what is missing or does not work, by the command that installs it."""
    by_remedy: dict[tuple[str, str, str, bool], list[str]] = {}
    for component in missing:
        state = f" ({component.installed} installed, {component.wanted} wanted)" if component.installed else ""
        state = f" ({component.installed} {component.fault})" if component.fault else state
        lack = "does not work" if component.fault else "missing"
        needed = component.needed_for if component.required else f"{component.needed_for}, optional"
        by_remedy.setdefault((lack, needed, component.remedy, component.required), []).append(component.name + state)
    console.print(Text("Missing" if missing else "Nothing is missing", style="bold"))
    for (lack, needed, remedy, required), names in by_remedy.items():
        _print_lack(console, f"{', '.join(names)}: {lack} ({needed})", remedy, "red" if required else "yellow")


def print_requirements(console: Console, maker: str, requirements: Sequence[MachineRequirement]) -> None:
    """Print what a machine with a maker's devices needs, found or missing."""
    console.print(Text(f"What a machine with {maker}'s devices needs", style="bold"))
    for one in requirements:
        purpose = one.purpose if one.required else f"{one.purpose}, optional"
        if one.fault:
            _print_lack(console, f"{one.name}: {one.found or 'missing'}; {one.fault} ({purpose})", one.remedy, "red")
        elif one.found:
            console.print(Text(f"{one.name}: {one.found} ({purpose})"))
        else:
            _print_lack(console, f"{one.name}: missing ({purpose})", one.remedy, "")


def _print_lack(console: Console, what: str, remedy: str, style: str) -> None:
    """Two lines; a command stays on one, to be copied."""
    console.print(Text(what, style=style), soft_wrap=True)
    console.print(Text(f"    {remedy}", style="cyan"), soft_wrap=True)
