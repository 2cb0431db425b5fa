"""Device platforms: the one place, with megatron_patches/, where devices differ."""

from __future__ import annotations

import difflib
import importlib

from longvita.config.errors import Problem
from longvita.config.schema import Config
from longvita.platforms.base import Platform, PlatformError

NAMES = ("npu", "cuda", "cpu")
"""Platforms in the order in which `get("auto")` tries them; each is a folder of this package."""

ACCELERATOR_EXTRAS = ("npu", "gpu")
"""Extras of the package that only machines with an accelerator need."""


def get(name: str = "auto") -> Platform:
    """The platform called `name`; "auto" is the first one whose device is present.

    Raises PlatformError for a name without a platform, or a platform without its device.
    """
    if name == "auto":
        return next(platform for platform in map(_load, NAMES) if platform.is_available())
    platform = named(name)
    if not platform.is_available():
        raise PlatformError(
            f"platform: {name!r} has no device on this machine; use auto to take the one that is there, or see what it "
            f"needs: longvita doctor --platform {name}"
        )
    return platform


def named(name: str) -> Platform:
    """The platform called `name`, whether its device is here or not: to ask what it refuses, not to run on it.

    Raises PlatformError for a name without a platform.
    """
    if name not in NAMES:
        raise PlatformError(
            f"platform: {name!r} is not among the platforms of this version, {list(NAMES)}; use one or auto"
        )
    return _load(name)


def _load(name: str) -> Platform:
    return importlib.import_module(f"{__name__}.{name}.platform").PLATFORM


def name_problems(config: Config) -> list[Problem]:
    """The problem of a config whose platform does not exist; for longvita.config.load."""
    known = ["auto", *NAMES]
    if config.platform in known:
        return []
    close = difflib.get_close_matches(config.platform, known, n=1, cutoff=0.75)
    fix = f"did you mean {close[0]}?" if close else ""
    return [Problem(f"is not a platform; known: {', '.join(known)}", "platform", config.platform, fix=fix)]
