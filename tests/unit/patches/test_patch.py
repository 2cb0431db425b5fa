"""Applying, reverting and refusing patches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from megatron_patches import patch
from megatron_patches.patch import Patch, PatchError
from tests.unit.patches import sample

SAMPLE = "tests.unit.patches.sample"


def make(name: str, replacement: Any, signature: str, versions: str = "torch>=2.7") -> Patch:
    return Patch(f"{SAMPLE}:{name}", replacement, "a reason", "never", signature, versions)


def triple(x: int, times: int = 3) -> int:
    return x * times


DOUBLE = make("double", triple, "def double(x, times=2)")
METHOD = make("Child.method", lambda self: "patched", "def method(self)")
STATIC = make("Child.static", staticmethod(lambda x: -x), "staticmethod def static(x)")
INHERITED = make("Child.inherited", lambda self: "patched", "def inherited(self)")
NUMBER = make("NUMBER", 4, "3")
ALL = [DOUBLE, METHOD, STATIC, INHERITED, NUMBER]


def answers() -> list[Any]:
    child = sample.Child()
    return [sample.double(5), child.method(), child.static(5), child.inherited(), sample.NUMBER]


def test_apply_and_revert() -> None:
    applied = patch.apply(ALL)
    assert answers() == [15, "patched", -5, "patched", 4]
    assert sample.Base().inherited() == "base"
    assert applied == ALL == patch.report()
    patch.revert()
    assert answers() == [10, "child", 5, "base", 3]
    assert "inherited" not in vars(sample.Child)
    assert isinstance(vars(sample.Child)["static"], staticmethod)
    assert patch.report() == []


def test_applying_twice_changes_nothing() -> None:
    first = patch.apply(ALL)
    assert patch.apply(ALL) == first
    patch.revert()
    assert sample.double(5) == 10


def test_revert_of_some() -> None:
    patch.apply(ALL)
    patch.revert([METHOD, replace(NUMBER, target=f"{SAMPLE}:Child")])
    assert answers() == [15, "child", -5, "patched", 4]


def test_two_patches_on_one_target_are_refused() -> None:
    other = replace(DOUBLE, replacement=lambda x, times=2: 0)
    with pytest.raises(PatchError, match=r"two patches on .*double"):
        patch.apply([DOUBLE, other])
    patch.apply([DOUBLE])
    with pytest.raises(PatchError, match="patched already"):
        patch.apply([other])
    assert sample.double(5) == 15


def test_a_changed_signature_is_refused_and_nothing_stays() -> None:
    changed = replace(METHOD, signature="def method(self, more)")
    with pytest.raises(PatchError, match=r"changed(?s:.*)def method\(self, more\)(?s:.*)def method\(self\)"):
        patch.apply([DOUBLE, changed])
    assert patch.report() == [] and sample.double(5) == 10


def test_another_version_is_refused() -> None:
    with pytest.raises(PatchError, match=r"torch==1\.0.*is installed"):
        patch.apply([replace(DOUBLE, versions="torch==1.0")])


def test_a_target_that_is_gone_is_refused() -> None:
    with pytest.raises(PatchError, match="does not exist"):
        patch.apply([replace(DOUBLE, target=f"{SAMPLE}:Child.gone")])


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (sample, f"module {SAMPLE}"),
        (sample.Child, f"class {SAMPLE}.Child"),
        (sample.double, "def double(x, times=2)"),
        (vars(sample.Child)["static"], "staticmethod def static(x)"),
        (None, "None"),
        (len, "Return the number of items in a container."),
    ],
)
def test_describe(thing: Any, text: str) -> None:
    assert patch.describe(thing) == text


IMPORT_ALL = """
import importlib, pkgutil
import longvita, megatron_patches
for package in (longvita, megatron_patches):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from megatron_patches import cpu, patch
assert patch.report() == [], patch.report()
patches = cpu.patches()
for one in patches:
    patch.check_fits(one)
print(len(patches))
"""


def test_nothing_is_patched_at_import() -> None:
    """A process that imports every module leaves each target unchanged."""
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 10
