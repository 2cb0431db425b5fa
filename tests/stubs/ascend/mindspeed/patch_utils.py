"""MindSpeed's registry of replacements."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any


class Patch:
    """A replaced name, "package.module.name"; dummy modules are created for packages that are not installed."""

    def __init__(self, name: str, new: Any, create_dummy: bool):
        self.module_name, self.name = name.rsplit(".", 1)
        self.new, self.create_dummy, self.original = new, create_dummy, None
        self.owner: Any = None

    def apply(self) -> None:
        """Set the replacement in the module, and in every module that has imported the original."""
        self.owner = _module(self.module_name, self.create_dummy)
        self.original = getattr(self.owner, self.name, None)
        new = self.new(self.original) if getattr(self.new, "__name__", "").endswith("wrapper") else self.new
        if self.original is not None and not isinstance(self.owner, type):
            _replace_everywhere(self.name, self.original, new)
        setattr(self.owner, self.name, new)
        self.final = new

    def remove(self) -> None:
        """Restore the original everywhere."""
        if self.original is None:
            return
        _replace_everywhere(self.name, self.final, self.original)
        setattr(self.owner, self.name, self.original)


def _replace_everywhere(name: str, old: Any, new: Any) -> None:
    for key, module in list(sys.modules.items()):
        if "mindspeed" not in key and getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _module(path: str, create_dummy: bool) -> Any:
    parts = path.split(".")
    found: Any = None
    for index in range(1, len(parts) + 1):
        name = ".".join(parts[:index])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            if found is not None and hasattr(found, parts[index - 1]):
                found = getattr(found, parts[index - 1])
                continue
            if not create_dummy:
                raise
            dummy = types.ModuleType(name)
            dummy.__file__, dummy.__spec__, dummy.__path__ = "mindspeed.dummy_module.py", ModuleSpec(name, None), []
            sys.modules[name] = dummy
            if found is not None:
                setattr(found, parts[index - 1], dummy)
            found = dummy
    return found


class MindSpeedPatchesManager:
    """All replacements of the process."""

    patches_info: dict[str, Patch] = {}

    @staticmethod
    def register_patch(
        orig_func_name: str, new_func: Any = None, force_patch: bool = False, create_dummy: bool = False
    ) -> None:
        """Replace a name; functions named ...wrapper are wrapped around the original."""
        patch = Patch(orig_func_name, new_func, create_dummy)
        patch.apply()
        MindSpeedPatchesManager.patches_info[orig_func_name] = patch

    @staticmethod
    def remove_patches() -> None:
        """Revert all replacements in installed modules."""
        for patch in reversed(list(MindSpeedPatchesManager.patches_info.values())):
            patch.remove()
        MindSpeedPatchesManager.patches_info.clear()
