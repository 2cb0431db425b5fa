"""`longvita doctor`: the device, what is missing with its fix, what an accelerator would need; on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE

if TYPE_CHECKING:
    from rich.console import Console

    from longvita.platforms.base import Platform
    from megatron_patches.patch import Patch


def doctor(
    platform: Annotated[str, typer.Option(help="Platform to look at; auto selects the one that is there.")] = "auto",
    everything: Annotated[bool, typer.Option("--all", help="Every version and every patch too.")] = False,
) -> int:
    """Show the device, what is missing, and what an accelerator would need, each with the command that installs it."""
    from rich.console import Console

    return print_report(platform, everything, Console())


def print_report(platform: str, everything: bool, console: Console) -> int:
    """Print the report; 0, or 1 if something is missing that the project, or the platform, requires.

    everything: every version and every patch too. For a platform without a device here, print its requirements. Raises
    PlatformError for a name without a platform.
    """
    from longvita import platforms
    from longvita.commands.support import doctor_tables
    from longvita.doctor.components import export_packages, programs, python_packages
    from longvita.doctor.import_check import checked

    with console.status("importing what is installed"):
        chosen, reason = _platform(platform)
        components = checked([*python_packages(), *export_packages(), *programs()])
        own = checked(chosen.requirements())
        others = [] if own else [(one, checked(one.requirements())) for one in map(platforms.named, platforms.NAMES)]
    if not reason:
        applied, failure = _activate(chosen)
        doctor_tables.print_summary(console, chosen, components, applied, failure)
        doctor_tables.print_decisions(console, chosen)
    else:
        applied, failure = [], reason
        console.print(failure, style="red", markup=False)
    if everything:
        doctor_tables.print_versions(console, components)
        doctor_tables.print_patches(console, applied)
    missing = [component for component in components if not component.works]
    doctor_tables.print_missing(console, missing)
    for one, requirements in [(chosen, own), *sorted(others, key=lambda other: other[0].name)]:
        if requirements:
            doctor_tables.print_requirements(console, one.maker, requirements)
    lacks = any(one.required and not one.works for one in own)
    found_all = not failure and not lacks and not any(component.required for component in missing)
    return EXIT_COMPLETE if found_all else EXIT_INCOMPLETE


def _platform(name: str) -> tuple[Platform, str]:
    """The platform `name`, or the one that is here, and the reason if it cannot be used.

    A package of devices is imported in a process of its own first: it may end the process, or not return.
    """
    from longvita import platforms
    from longvita.doctor.import_check import import_faults
    from longvita.platforms.base import importable

    for candidate in map(platforms.named, platforms.NAMES if name == "auto" else [name]):
        package = candidate.device_package
        faults = import_faults((package,)) if package and importable(package) else {}
        if faults and name != "auto":
            return candidate, f"platform {candidate.name}: {package} cannot be imported: {faults[package]}"
        if not faults and candidate.is_available():
            return candidate, ""
    return candidate, f"platform {candidate.name} finds no device on this machine"


def _activate(platform: Platform) -> tuple[list[Patch], str]:
    """The applied patches, and the reason if they cannot be applied."""
    try:
        return platform.activate(), ""
    except Exception as error:  # noqa: BLE001 - a library may raise anything at its import
        return [], f"cannot be applied: {type(error).__name__}: {error}"
