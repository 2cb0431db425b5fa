"""The cores that a process may use."""

from __future__ import annotations

import os

import pytest

from longvita import process_limits
from longvita.process_limits import available_cores


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups in which this process has 64 cores by its affinity."""
    monkeypatch.setattr(process_limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(process_limits, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cgroup" / "job" / "step").mkdir(parents=True)
    (tmp_path / "own").write_text("3:cpuset:/other\n0::/job/step\n")
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 64),
        ({"job/step": "max 100000"}, 64),
        ({"job/step": "400000 100000"}, 4),
        ({"job/step": "max 100000", "job": "250000 100000"}, 2),
        ({"": "50000 100000"}, 1),
        ({"job": "12800000 100000"}, 64),
        ({"job/step": "what"}, 64),
    ],
)
def test_are_those_of_the_tightest_limit(groups, quotas, cores):
    for group, quota in quotas.items():
        (groups / group / "cpu.max").write_text(f"{quota}\n")
    assert available_cores() == cores


def test_without_control_groups(groups):
    (groups.parent / "own").unlink()
    assert available_cores() == 64
