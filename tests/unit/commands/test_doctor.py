"""`longvita doctor`."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from longvita import cli, platforms
from longvita.commands import doctor
from longvita.doctor import components, import_check
from longvita.platforms.base import PlatformError, importable
from longvita.platforms.requirements import MachineRequirement
from megatron_patches import patch
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    platforms.get("cpu").activate()


def report(platform: str = "cpu", everything: bool = False, width: int = 300) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=width)
    code = doctor.print_report(platform, everything, console)
    return code, console.file.getvalue()


def test_it_prints_device_versions_and_patches() -> None:
    code, text = report(everything=True)
    assert code == 0
    for word in ("gloo", "megatron-core", "0.16.1", "transformers", "decord2", "av", "python"):
        assert word in text
    for one in patch.report():
        assert one.target in text and one.why in text and one.remove_when in text


def test_a_missing_required_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_av(name: str) -> str:
        if name == "av":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_av)
    code, text = report()
    assert code == 1
    assert "av: missing (everything)\n    bash scripts/setup.sh\n" in text


@pytest.mark.parametrize(
    ("torch", "torchvision", "fix"),
    [
        ("2.13.0+cpu", None, "pip install 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"),
        ("2.13.0", "0.29.1", "pip install 'torchvision==0.28.*'"),
        (
            "2.7.1+cu128",
            "0.28.0",
            "pip install 'torchvision==0.22.*' --index-url https://download.pytorch.org/whl/cu128",
        ),
    ],
)
def test_torchvision_of_another_torch_is_named(
    monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str | None, fix: str
) -> None:
    def version(name: str) -> str:
        found = {"torch": torch, "torchvision": torchvision}[name]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(components, "_module", lambda name: name)
    (found,) = components.export_packages()
    assert (found.installed, found.fits, found.required) == (torchvision, False, False)
    assert found.remedy == fix and "AutoProcessor" in found.needed_for


def test_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "pydantic" else version(name))
    code, text = report()
    assert code == 1 and "0.0.1 installed" in text


def test_an_installed_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_check, "import_faults", lambda modules: {"av": "ImportError: libavcodec.so.61"})
    code, text = report()
    assert code == 1
    assert "av (" in text and "cannot be imported: ImportError: libavcodec.so.61): does not work (everything)" in text


def test_a_library_of_the_device_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library = MachineRequirement("mindspeed", "0.16.0", "layers", "git clone it", "mindspeed.megatron_adaptor")
    fault = {"mindspeed.megatron_adaptor": "RuntimeError: 0 active drivers"}
    monkeypatch.setattr(type(platforms.get("cpu")), "requirements", lambda self: [library])
    monkeypatch.setattr(import_check, "import_faults", lambda modules: fault)
    code, text = report()
    assert code == 1
    assert "mindspeed: 0.16.0; cannot be imported: RuntimeError: 0 active drivers (layers)\n    git clone it\n" in text


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("raise RuntimeError('CANN version mismatch')", "RuntimeError: CANN version mismatch"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its import ended the process with SIGSEGV"),
    ],
    ids=["raises", "crashes"],
)
def test_a_package_of_devices_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: str
) -> None:
    info = tmp_path / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
    (tmp_path / "torch_npu.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (importable, import_check.import_faults):
        cached.cache_clear()
    code_of_all, everything = report("auto")
    code_of_npu, text = report("npu")
    importable.cache_clear()
    assert (code_of_all, code_of_npu) == (0, 1)
    assert f"cannot be imported: {fault}" in everything  # among what Ascend needs; the platform is the CPU
    assert f"platform npu: torch_npu cannot be imported: {fault}" in text


def test_a_device_package_that_torch_would_import_itself_ends_no_command(tmp_path: Path) -> None:
    (tmp_path / "broken_devices.py").write_text("raise ImportError('libdevice.so: cannot open shared object file')")
    info = tmp_path / "broken_devices-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-devices\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nbroken = broken_devices:_autoload\n")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    python = [sys.executable, "-c", "import torch"]
    assert b"libdevice.so" in subprocess.run(python, capture_output=True, env=environment).stderr
    command = [sys.executable, "-m", "longvita", "doctor", "--platform", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_an_optional_program_is_named_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.shutil, "which", lambda name: None)
    code, text = report()
    assert code == 0 and "apt-get install ffmpeg" in text


def test_extras_of_other_devices_are_left_out() -> None:
    found = components.python_packages()
    assert not {f"extra {extra}" for extra in platforms.ACCELERATOR_EXTRAS} & {one.needed_for for one in found}
    assert {one.needed_for for one in found if one.required} == {"everything"}
    serve = [one for one in found if one.needed_for == "extra serve"]
    assert serve and all(one.remedy == "pip install -e '.[serve]' -c constraints.txt" for one in serve)


def test_what_the_platform_sets_and_decides_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = type(platforms.get("cpu"))
    monkeypatch.setattr(cpu, "environment", lambda self: {"SOME_SETTING": "1"})
    monkeypatch.setattr(cpu, "decisions", lambda self: [("attention", "of our own")])
    code, text = report()
    assert code == 0 and "SOME_SETTING=1" in text and "of our own" in text


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "PACKAGE", "longvita-that-is-not-there")
    code, text = report()
    assert code == 1 and "bash scripts/setup.sh" in text


def test_a_patch_that_does_not_fit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> list:
        raise patch.PatchError("torch:Tensor.cuda changed")

    monkeypatch.setattr(type(platforms.get("cpu")), "activate", broken)
    code, text = report()
    assert code == 1 and "torch:Tensor.cuda changed" in text


def test_a_platform_that_is_not_there() -> None:
    with pytest.raises(PlatformError, match="abacus"):
        report("abacus")


@pytest.mark.parametrize(("platform", "maker"), [("cuda", "Nvidia"), ("npu", "Ascend")])
def test_requirements_of_a_platform_without_its_device_are_printed(platform: str, maker: str) -> None:
    code, text = report(platform)
    assert code == 1 and f"platform {platform} finds no device on this machine" in text
    assert [line for line in text.splitlines() if line.startswith("What a machine with")] == [
        f"What a machine with {maker}'s devices needs"
    ]


def test_command_line() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--platform", "cpu"])
    assert result.exit_code == 0 and "patches" in result.output


def test_requirements_of_accelerators_fit_one_screen_on_a_machine_without_them() -> None:
    code, text = report(width=100)
    assert code == 0
    assert len(text.splitlines()) <= 45
    for maker in ("Nvidia", "Ascend"):
        assert f"What a machine with {maker}'s devices needs" in text


def test_every_missing_line_is_followed_by_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.shutil, "which", lambda name: None)
    _, text = report(width=100)
    lines = text.splitlines()
    lacks = [number for number, line in enumerate(lines) if ": missing (" in line]
    assert len(lacks) >= sum(len(platforms.named(name).requirements()) for name in platforms.NAMES)
    for number in lacks:
        program = lines[number + 1].split()[0]
        assert lines[number + 1].startswith("    ")
        assert program in ("pip", "bash", "sudo", "git", "apt-get", "source")


def test_what_is_here_needs_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.shutil, "which", lambda name: f"/usr/bin/{name}")
    _, text = report()
    assert "driver: /usr/bin/nvidia-smi (the device)\ntorch for" in text
