"""The platform layer: with megatron_patches/, the only code in which devices differ."""

from __future__ import annotations

import difflib
import importlib

from longvita.config.errors import Problem
from longvita.config.schema import Config
from longvita.platforms.base import Platform, PlatformError

NAMES = ("npu", "cuda", "cpu")
"""Platforms in the order in which `get("auto")` tries them. Each is a folder of this package."""

ACCELERATOR_EXTRAS = ("npu", "gpu")
"""Extras of the package that only machines with an accelerator need."""


def get(name: str = "auto") -> Platform:
    """The platform `name`; for "auto", the first whose device is present.

    Raises PlatformError for an unknown name, or if this machine lacks the platform's device.
    """
    if name == "auto":
        return next(platform for platform in map(_load, NAMES) if platform.is_available())
    platform = named(name)
    if not platform.is_available():
        raise PlatformError(
            f"platform: {name!r} has no device on this machine; fix: use auto for the device that is present; "
            f"`longvita doctor --platform {name}` lists what the platform requires"
        )
    return platform


def named(name: str) -> Platform:
    """The platform `name`, for questions such as what it refuses; its device may be absent.

    Raises PlatformError for an unknown name.
    """
    if name not in NAMES:
        raise PlatformError(f"platform: {name!r} is not a platform; fix: use auto or one of {list(NAMES)}")
    return _load(name)


def _load(name: str) -> Platform:
    return importlib.import_module(f"{__name__}.{name}.platform").PLATFORM


def name_problems(config: Config) -> list[Problem]:
    """The problem of a config that names an unknown platform; for longvita.config.load."""
    known = ["auto", *NAMES]
    if config.platform in known:
        return []
    close = difflib.get_close_matches(config.platform, known, n=1, cutoff=0.75)
    fix = f"did you mean {close[0]}?" if close else ""
    return [Problem(f"is not a platform; known: {', '.join(known)}", "platform", config.platform, fix=fix)]
