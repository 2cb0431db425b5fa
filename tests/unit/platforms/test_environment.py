"""Environment variables of the platforms: which are set, where they are written down, and for whom."""

from __future__ import annotations

import pytest

from longvita import platforms
from longvita.platforms.environment import SETTINGS, defaults, settings
from tests.conftest import REPOSITORY


def test_every_platform_has_an_entry():
    assert set(SETTINGS) == set(platforms.NAMES)
    for entries in SETTINGS.values():
        assert len({setting.name for setting in entries}) == len(entries)
        assert all(len(setting.why.split()) > 4 for setting in entries)


def test_megatron_s_order_of_collectives():
    for name in ("cuda", "npu"):
        assert defaults(name)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert defaults("cpu") == {}


@pytest.mark.parametrize(("file", "name"), [("nvidiactl", "cuda"), ("davinci_manager", "npu"), ("tty", "cpu")])
def test_auto_goes_by_the_driver_s_file(tmp_path, file, name):
    (tmp_path / file).touch()
    assert settings("auto", devices=tmp_path) == SETTINGS[name]


def test_a_name_that_is_no_platform_has_none():
    assert settings("toaster") == ()


@pytest.mark.parametrize(
    ("platform", "setting"), [(name, one) for name, entries in SETTINGS.items() for one in entries]
)
def test_the_page_lists_them(platform, setting):
    page = (REPOSITORY / "docs" / "slurm.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{setting.name}={setting.value}` |")]
    assert len(rows) == 1, f"docs/slurm.md lacks the row of {setting.name} ({platform})"
