"""Device platforms: the one place, with megatron_patches/, where devices differ."""

from __future__ import annotations

import importlib
import importlib.util

from longvita.platforms.base import Platform, PlatformError

PREFERENCE = ("npu", "cuda", "cpu")
"""Platforms that the project knows of, in the order `get("auto")` tries them; each is a module of this package."""

ACCELERATOR_EXTRAS = ("npu", "gpu")
"""Extras of the package that only machines with an accelerator need."""


def names() -> list[str]:
    """Platforms that this version has, in the order of preference. Whether the device is there is another matter."""
    return [name for name in PREFERENCE if importlib.util.find_spec(f"{__name__}.{name}") is not None]


def get(name: str = "auto") -> Platform:
    """The platform called `name`; "auto" is the first one whose device is present.

    Raises PlatformError for a name without a platform, or a platform without its device.
    """
    if name == "auto":
        return next(platform for platform in map(_load, names()) if platform.is_available())
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
    if name not in names():
        raise PlatformError(
            f"platform: {name!r} is not among the platforms of this version, {names()}; use one or auto"
        )
    return _load(name)


def _load(name: str) -> Platform:
    return importlib.import_module(f"{__name__}.{name}").PLATFORM
