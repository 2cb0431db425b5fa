"""Patches change the whole process: these tests start without any and restore the previous ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_patches import patch


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    before = patch.report()
    patch.revert()
    yield
    patch.revert()
    patch.apply(before)
