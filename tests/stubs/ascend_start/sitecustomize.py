"""Makes the Ascend platform over stubs the platform `npu` of every Python process with this folder on PYTHONPATH.

For commands that tests run as a user does, in ranks that they start themselves. MINDSPEED_SOURCE_OF_COMMANDS names
MindSpeed's own source, if that is to be used instead of its stub.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from longvita import platforms


def _over_stubs(load: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.cache
    def _load(name: str) -> Any:
        if name != "npu":
            return load(name)
        from tests.stubs import ascend_platform

        return ascend_platform.platform(os.environ.get("MINDSPEED_SOURCE_OF_COMMANDS") or None)

    return _load


platforms._load = _over_stubs(platforms._load)
