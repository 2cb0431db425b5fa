"""Environment variables of a platform, which the launcher sets."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from longvita import launcher
from tests.unit.test_launcher import clear_launchers


def test_a_platform_s_settings_are_set_where_the_run_does_not_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_launchers(monkeypatch)
    settings = {"LONGVITA_TEST_SET": "of the platform", "LONGVITA_TEST_UNSET": "of the platform"}
    monkeypatch.setenv("LONGVITA_TEST_SET", "of the run")
    monkeypatch.setenv("LONGVITA_TEST_UNSET", "")
    monkeypatch.delenv("LONGVITA_TEST_UNSET")
    seen = {}

    def set_device(local_rank: int) -> None:
        seen.update({name: os.environ.get(name) for name in settings})

    launcher.init_distributed(SimpleNamespace(environment=lambda: settings, set_device=set_device, backend="gloo"))
    dist.destroy_process_group()
    assert seen == {"LONGVITA_TEST_SET": "of the run", "LONGVITA_TEST_UNSET": "of the platform"}
