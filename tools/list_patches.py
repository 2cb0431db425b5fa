"""Prints docs/patches.md, every patch with its reason and its end: `python tools/list_patches.py > docs/patches.md`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from longvita import platforms
from longvita.planning.dry_run import meta_patches
from longvita.platforms.layer_memory import NVIDIA
from megatron_patches.patch import Patch

HEAD = """# Patches

The changes of this project to megatron-core and torch by platform, with the reason for each and the condition for its
removal. Nothing is patched at import: `longvita.platforms.get(NAME).activate()` applies a platform's patches, and
refuses a patch if the signature of its target has changed. `longvita doctor --all` lists the applied patches.

This page is written by `python tools/list_patches.py > docs/patches.md`; a test compares it with the code.
"""
DRY_RUN = "dry run"


def patches_by_section() -> dict[str, list[Patch]]:
    """The patches of each platform, the CPU's first, and those of a dry run."""
    names = sorted(platforms.NAMES, key=lambda name: (name != "cpu", name))
    found = {name: importlib.import_module(f"megatron_patches.{name}").patches() for name in names}
    return {**found, DRY_RUN: meta_patches.patches(NVIDIA)}


def page() -> str:
    """The page, as Markdown."""
    found = patches_by_section()
    shared = {(patch.target, patch.why) for patch in found["cpu"]}
    parts = [HEAD]
    for name, patches in found.items():
        module = meta_patches if name == DRY_RUN else importlib.import_module(f"megatron_patches.{name}")
        about = (module.__doc__ or "").strip().splitlines()[0]
        own = [patch for patch in patches if name == "cpu" or (patch.target, patch.why) not in shared]
        same = len(patches) - len(own)
        note = f" {same} of the CPU's patches apply too." if same else ""
        parts.append(f"## {name}\n\n{about}{note}\n\n{_table(own)}" if own else f"## {name}\n\n{about}{note}\n")
    return "\n".join(parts)


def _table(patches: Iterable[Patch]) -> str:
    """A table with a row for each reason."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for patch in patches:
        rows.setdefault((patch.why, patch.remove_when, patch.versions), []).append(f"`{patch.target}`")
    lines = ["| target | why | until | for |", "| --- | --- | --- | --- |"]
    for (why, until, versions), targets in rows.items():
        cells = ("<br>".join(sorted(targets)), why, until, versions)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
