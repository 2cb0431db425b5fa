"""A patch: one name of megatron-core or torch that stands for something else while the patch is applied.

Nothing is patched at import. `apply` puts patches in place, `revert` takes them back, `report` tells which are in
place. A target holds one patch at most, and a patch fits only the version and the signature it was written against:
anything else raises `PatchError` instead of changing code that nobody has looked at.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement


class PatchError(RuntimeError):
    """A patch does not fit its target."""


@dataclass(frozen=True)
class Patch:
    """One change.

    target: "module:name", the name may be dotted ("torch:Tensor.cuda").
    replacement: what the name stands for while the patch is applied.
    why: what goes wrong without it, one sentence.
    versions: requirement that it was written for ("megatron-core==0.16.1").
    remove_when: what has to happen before it can go.
    signature: `describe` of what the name stood for when the patch was written.
    """

    target: str
    replacement: Any
    why: str
    versions: str
    remove_when: str
    signature: str


@dataclass(frozen=True)
class AppliedPatch:
    """A patch in place, and what is needed to take it back."""

    patch: Patch
    owner: Any
    attribute: str
    original: Any
    inherited: bool

    def revert(self) -> None:
        """Puts the original back."""
        if self.inherited:
            delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, self.original)


# Patches act on the whole process, so what is applied is kept for the whole process.
_applied: dict[str, AppliedPatch] = {}


def apply(patches: Iterable[Patch]) -> list[AppliedPatch]:
    """Puts `patches` in place, all or none, and returns them; those in place already stay as they are.

    Raises PatchError if two patches share a target, an installed version is not the one a patch was written for, or
    a target's signature is not the recorded one.
    """
    wanted = list(patches)
    check_unique(wanted)
    done: list[AppliedPatch] = []
    try:
        for patch in wanted:
            if patch.target in _applied:
                _check_same(patch)
                continue
            done.append(_apply_one(patch))
    except BaseException:
        for applied in reversed(done):
            _revert_one(applied)
        raise
    return [_applied[patch.target] for patch in wanted]


def revert(patches: Iterable[Patch] | None = None) -> None:
    """Takes back `patches`, or all, in reverse order. Patches that are not in place are passed over."""
    targets = set(_applied) if patches is None else {patch.target for patch in patches}
    for applied in reversed(list(_applied.values())):
        if applied.patch.target in targets:
            _revert_one(applied)


def report() -> list[AppliedPatch]:
    """The patches in place, in the order they were applied."""
    return list(_applied.values())


def check_unique(patches: Iterable[Patch]) -> None:
    """Raises PatchError if two of `patches` share a target."""
    seen: dict[str, Patch] = {}
    for patch in patches:
        if patch.target in seen and seen[patch.target] is not patch:
            raise PatchError(f"two patches on {patch.target}: '{seen[patch.target].why}' and '{patch.why}'; join them")
        seen[patch.target] = patch


def check_fits(patch: Patch) -> None:
    """Raises PatchError if the installed version or the target's signature is not what `patch` was written for."""
    _check_version(patch)
    _, _, original, _ = _resolve(patch)
    found = describe(original)
    if found != patch.signature:
        raise PatchError(
            f"{patch.target} changed: the patch was written for\n  {patch.signature}\nbut the installed one is\n"
            f"  {found}\nRead the new code, then update the patch and its signature, or remove it."
        )


def describe(thing: Any) -> str:
    """The kind and signature of `thing` as one line: what a patch's `signature` records."""
    if isinstance(thing, staticmethod):
        return f"staticmethod {describe(thing.__func__)}"
    if isinstance(thing, ModuleType):
        return f"module {thing.__name__}"
    if isinstance(thing, type):
        return f"class {thing.__module__}.{thing.__qualname__}"
    if inspect.isfunction(thing):
        return f"def {thing.__name__}{_plain_signature(thing)}"
    if callable(thing):
        return next((line for line in (thing.__doc__ or "").splitlines() if line.strip()), type(thing).__name__).strip()
    return repr(thing)


def _plain_signature(function: Any) -> str:
    """Parameters with their defaults and no annotations, which say nothing about how a function is called."""
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _check_version(patch: Patch) -> None:
    requirement = Requirement(patch.versions)
    installed = importlib.metadata.version(requirement.name)
    if not requirement.specifier.contains(installed, prereleases=True):
        raise PatchError(
            f"the patch on {patch.target} was written for {patch.versions}, installed is {installed}: "
            f"install the pinned version, or check the patch against the new code and widen its versions"
        )


def _resolve(patch: Patch) -> tuple[Any, str, Any, bool]:
    """Owner, attribute, what it stands for now, and whether the owner inherits it."""
    module, _, path = patch.target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    try:
        for parent in parents:
            owner = getattr(owner, parent)
        original = inspect.getattr_static(owner, attribute)
    except AttributeError as error:
        raise PatchError(f"{patch.target} does not exist (any more): update or remove its patch") from error
    return owner, attribute, original, attribute not in vars(owner)


def _check_same(patch: Patch) -> None:
    if _applied[patch.target].patch is not patch:
        raise PatchError(f"{patch.target} is patched already: '{_applied[patch.target].patch.why}'; revert that first")


def _apply_one(patch: Patch) -> AppliedPatch:
    check_fits(patch)
    owner, attribute, original, inherited = _resolve(patch)
    setattr(owner, attribute, patch.replacement)
    _applied[patch.target] = AppliedPatch(patch, owner, attribute, original, inherited)
    return _applied[patch.target]


def _revert_one(applied: AppliedPatch) -> None:
    applied.revert()
    del _applied[applied.patch.target]
