"""docs/patches.md agrees with the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_patches.patch import Patch
from tools import list_patches

PATCHES = [patch for patches in list_patches.patches_by_section().values() for patch in patches]


def test_the_page_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "patches.md").read_text(encoding="utf-8")
    assert page == list_patches.page(), "python tools/list_patches.py > docs/patches.md"


@pytest.mark.parametrize("one", PATCHES, ids=lambda one: one.target)
def test_each_patch_is_on_it_with_its_reason_and_its_end(one: Patch) -> None:
    page = list_patches.page()
    row = next(line for line in page.splitlines() if f"`{one.target}`" in line and one.why in line)
    assert one.why.strip() and one.remove_when.strip()
    assert one.remove_when in row
