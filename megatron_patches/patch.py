"""Patches: replacements of single names of megatron-core or torch.

Nothing is patched at import. `apply` applies patches, `revert` restores the originals, `report` lists the applied ones.
A target has at most one patch, and a patch applies only to the version and the signature that it was written for:
anything else raises `PatchError` instead of changing code that nobody has reviewed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement


class PatchError(RuntimeError):
    """A patch does not fit its target."""


@dataclass(frozen=True)
class Patch:
    """One change.

    target: "module:name"; the name may be dotted ("torch:Tensor.cuda").
    replacement: value of the name while the patch is applied.
    why: the fault without it, in one sentence.
    remove_when: condition under which it can be removed.
    signature: `describe` of the original when the patch was written.
    versions: requirement that it was written for.
    """

    target: str
    replacement: Any
    why: str
    remove_when: str
    signature: str
    versions: str = "megatron-core==0.16.1"


# Patches change the whole process, so the applied ones are recorded per process.
_applied: dict[str, tuple[Patch, Callable[[], None]]] = {}
"""By target: the patch, and the function that restores the original."""


def apply(patches: Iterable[Patch]) -> list[Patch]:
    """Apply all of `patches` or none, and return them. Patches that are applied already stay unchanged.

    Raises PatchError if two patches share a target, an installed version is not the one a patch was written for, or
    a target's signature is not the recorded one.
    """
    wanted = list(patches)
    check_unique(wanted)
    with contextlib.ExitStack() as undo:
        for patch in wanted:
            present = _applied[patch.target][0] if patch.target in _applied else None
            if present is None:
                _apply_one(patch)
                undo.callback(revert, [patch])
            elif present is not patch:
                raise PatchError(f"{patch.target} is patched already: '{present.why}'; fix: revert that first")
        undo.pop_all()
    return wanted


def revert(patches: Iterable[Patch] | None = None) -> None:
    """Restore the originals of `patches`, or of all, in reverse order. Patches that are not applied are ignored."""
    targets = set(_applied) if patches is None else {patch.target for patch in patches}
    for target in reversed([target for target in _applied if target in targets]):
        _, restore = _applied.pop(target)
        restore()


def report() -> list[Patch]:
    """The applied patches, in the order of their application."""
    return [patch for patch, _ in _applied.values()]


def check_unique(patches: Iterable[Patch]) -> None:
    """Raise PatchError if two of `patches` share a target."""
    seen: dict[str, Patch] = {}
    for patch in patches:
        if patch.target in seen and seen[patch.target] is not patch:
            raise PatchError(
                f"two patches on {patch.target}: '{seen[patch.target].why}' and '{patch.why}'; fix: merge them"
            )
        seen[patch.target] = patch


def check_fits(patch: Patch) -> None:
    """Raise PatchError if `patch` was written for another installed version or another signature of its target."""
    _check_version(patch)
    _, _, original, _ = _resolve(patch)
    found = describe(original)
    if found != patch.signature:
        raise PatchError(
            f"{patch.target} changed: the patch was written for\n  {patch.signature}\nbut the installed one is\n"
            f"  {found}\nfix: read the new code, then update the patch and its signature, or remove the patch"
        )


def describe(thing: Any) -> str:
    """The kind and signature of `thing` in one line, as recorded in a patch's `signature`."""
    if isinstance(thing, staticmethod):
        return f"staticmethod {describe(thing.__func__)}"
    if isinstance(thing, classmethod):
        return f"classmethod {describe(thing.__func__)}"
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
    """Parameters with their defaults, without annotations, which do not affect calls."""
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _check_version(patch: Patch) -> None:
    requirement = Requirement(patch.versions)
    installed = importlib.metadata.version(requirement.name)
    if not requirement.specifier.contains(installed, prereleases=True):
        raise PatchError(
            f"the patch on {patch.target} was written for {patch.versions}, but {installed} is installed; "
            f"fix: install the pinned version, or check the patch against the new code and extend its versions"
        )


def _resolve(patch: Patch) -> tuple[Any, str, Any, bool]:
    """Owner, attribute, its present value, and whether the owner inherits it."""
    module, _, path = patch.target.partition(":")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PatchError(f"{patch.target}: {error}; fix: update or remove its patch") from error
    *parents, attribute = path.split(".")
    try:
        for parent in parents:
            owner = getattr(owner, parent)
        original = inspect.getattr_static(owner, attribute)
    except AttributeError as error:
        raise PatchError(f"{patch.target} does not exist; fix: update or remove its patch") from error
    return owner, attribute, original, attribute not in vars(owner)


def _apply_one(patch: Patch) -> None:
    check_fits(patch)
    owner, attribute, original, inherited = _resolve(patch)
    undo = functools.partial(delattr, owner, attribute)
    restore = undo if inherited else functools.partial(setattr, owner, attribute, original)
    setattr(owner, attribute, patch.replacement)
    _applied[patch.target] = patch, restore
