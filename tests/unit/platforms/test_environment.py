"""Environment variables of the platforms, and their documentation."""

from __future__ import annotations

import pytest

from longvita import platforms
from longvita.platforms.environment import VARIABLES, defaults, variables
from tests.conftest import REPOSITORY


def test_every_platform_has_an_entry():
    assert set(VARIABLES) == set(platforms.NAMES)
    for entries in VARIABLES.values():
        assert len({variable.name for variable in entries}) == len(entries)
        assert all(len(variable.why.split()) > 4 for variable in entries)


def test_megatron_s_order_of_collectives():
    for name in ("cuda", "npu"):
        assert defaults(name)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert defaults("cpu") == {}


@pytest.mark.parametrize(("file", "name"), [("nvidiactl", "cuda"), ("davinci_manager", "npu"), ("tty", "cpu")])
def test_auto_depends_on_the_driver_s_file(tmp_path, file, name):
    (tmp_path / file).touch()
    assert variables("auto", devices=tmp_path) == VARIABLES[name]


def test_an_unknown_name_has_none():
    assert variables("toaster") == ()


@pytest.mark.parametrize(
    ("platform", "variable"), [(name, one) for name, entries in VARIABLES.items() for one in entries]
)
def test_the_page_lists_them(platform, variable):
    page = (REPOSITORY / "docs" / "slurm.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{variable.name}={variable.value}` |")]
    assert len(rows) == 1, f"docs/slurm.md lacks the row of {variable.name} ({platform})"
