"""docs/patches.md: every patch with its reason and the condition for its removal."""

from __future__ import annotations

from collections.abc import Iterable

from longvita.platforms.kernels import TRANSFORMER_ENGINE
from megatron_patches import cpu, cuda, meta, npu
from megatron_patches.patch import Patch

HEAD = """# Patches

What this project changes in megatron-core and torch, by platform, why, and until when. Nothing is patched at import:
`longvita.platforms.get(NAME).activate()` applies a platform's patches, and refuses one whose target no longer has the
signature that it was written for. `longvita doctor --all` lists those in place.

This page is written by `python tools/list_patches.py > docs/patches.md`; a test holds it to the code.
"""
SECTIONS = (
    ("cpu", "The CPU and gloo."),
    ("cuda", "Nvidia GPUs. Adam's are applied where neither Transformer Engine nor apex is installed."),
    ("npu", "Ascend, beside what MindSpeed itself replaces."),
    ("meta", "Rehearsals by shape (`longvita plan --rehearse`), in a process of their own."),
)


def page() -> str:
    """The whole page, as Markdown."""
    patches = {
        "cpu": cpu.patches(),
        "cuda": cuda.patches(own_adam=True),
        "npu": npu.patches(),
        "meta": meta.patches(TRANSFORMER_ENGINE),
    }
    shared = {(patch.target, patch.why) for patch in patches["cpu"]}
    parts = [HEAD]
    for name, about in SECTIONS:
        own = [patch for patch in patches[name] if name == "cpu" or (patch.target, patch.why) not in shared]
        same = len(patches[name]) - len(own)
        note = f" {same} of the CPU's are applied too." if same else ""
        parts.append(f"## {name}\n\n{about}{note}\n\n{_table(own)}" if own else f"## {name}\n\n{about}{note}\n")
    return "\n".join(parts)


def _table(patches: Iterable[Patch]) -> str:
    """Patches with one reason in one row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for patch in patches:
        rows.setdefault((patch.why, patch.remove_when, patch.versions), []).append(f"`{patch.target}`")
    lines = ["| target | why | until | for |", "| --- | --- | --- | --- |"]
    for (why, until, versions), targets in rows.items():
        cells = ("<br>".join(sorted(targets)), why, until, versions)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"
