"""Imports of packages in a process of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from longvita.doctor import import_check
from longvita.doctor.import_check import checked, import_faults
from longvita.platforms.requirements import MachineRequirement

MODULES = {
    "sound": "print('noise on stdout')",
    "needs_another": "import a_package_that_is_not_installed",
    "without_driver": "raise RuntimeError('0 active drivers ([]). There should only be one.\\nsecond line')",
    "leaves": "raise SystemExit(3)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "ends": "import os; os._exit(7)",
    "hangs": "import time; time.sleep(60)",
    "after_all": "",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in MODULES.items():
        (tmp_path / f"fault_{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(import_check, "TIMEOUT_SECONDS", 10)
    import_faults.cache_clear()


@pytest.mark.usefixtures("packages")
def test_each_kind_of_fault_is_named_and_the_next_module_imported(tmp_path: Path) -> None:
    folder = tmp_path.name
    faults = import_faults(tuple(f"fault_{name}" for name in MODULES))
    missing = "No module named 'a_package_that_is_not_installed'"
    driver = "0 active drivers ([]). There should only be one. second line"
    assert faults == {
        "fault_needs_another": f"ModuleNotFoundError: {missing} (in {folder}/fault_needs_another.py)",
        "fault_without_driver": f"RuntimeError: {driver} (in {folder}/fault_without_driver.py)",
        "fault_leaves": f"SystemExit: 3 (in {folder}/fault_leaves.py)",
        "fault_crashes": "its import ended the process with SIGSEGV",
        "fault_ends": "its import ended the process with exit code 7",
        "fault_hangs": "its import did not end within 10 s",
    }


@pytest.mark.usefixtures("packages")
def test_a_package_that_cannot_be_imported_does_not_work() -> None:
    parts = [
        MachineRequirement("driver", "/usr/bin/driver", "the device", "install it"),
        MachineRequirement("sound", "1.0", "everything", "pip install sound", "fault_sound"),
        MachineRequirement("broken", "2.0", "everything", "pip install broken", "fault_needs_another"),
        MachineRequirement("missing", None, "everything", "pip install missing", "fault_after_all"),
        MachineRequirement("wrong", "3.0", "everything", "replace it", "fault_hangs", fault="is the wrong one"),
    ]
    found = {part.name: part for part in checked(parts)}
    assert [name for name, part in found.items() if part.works] == ["driver", "sound"]
    assert found["broken"].fault.startswith("cannot be imported: ModuleNotFoundError")
    assert found["missing"].fault == ""
    assert found["wrong"].fault == "is the wrong one"  # and it was not imported, which would take the time limit
