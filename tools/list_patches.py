"""Prints docs/patches.md: `python tools/list_patches.py > docs/patches.md`."""

from __future__ import annotations

from megatron_patches.listing import page

if __name__ == "__main__":
    print(page(), end="")
