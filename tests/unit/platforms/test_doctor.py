"""`longvita doctor`."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner

from longvita import cli, doctor, platforms
from longvita.platforms.base import PlatformError
from megatron_patches import patch


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    platforms.get("cpu").activate()


def report(platform: str = "cpu") -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = doctor.run(platform, console)
    return code, console.file.getvalue()


def test_it_prints_device_versions_and_patches() -> None:
    code, text = report()
    assert code == 0
    for word in ("gloo", "megatron-core", "0.16.1", "transformers", "decord2", "av", "python"):
        assert word in text
    for one in patch.report():
        assert one.patch.target in text and one.patch.why in text and one.patch.remove_when in text


def test_a_missing_required_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_av(name: str) -> str:
        if name == "av":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_av)
    code, text = report()
    assert code == 1
    (line,) = [line for line in text.split("Missing")[1].splitlines() if line.startswith("│ av ")]
    assert "bash scripts/setup.sh" in line


def test_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "pydantic" else version(name))
    code, text = report()
    assert code == 1 and "0.0.1 installed" in text


def test_an_optional_program_is_named_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    code, text = report()
    assert code == 0 and "apt-get install ffmpeg" in text


def test_extras_of_other_devices_are_left_out() -> None:
    components = doctor.python_packages(platforms.get("cpu"))
    assert not {f"extra {extra}" for extra in platforms.ACCELERATOR_EXTRAS} & {one.needed_for for one in components}
    assert {one.needed_for for one in components if one.required} == {"everything"}
    serve = [one for one in components if one.needed_for == "extra serve"]
    assert serve and all(one.remedy == "pip install -e '.[serve]' -c constraints.txt" for one in serve)


def test_optional_packages_of_a_platform_are_named_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from longvita.platforms.cuda import OPTIONAL

    cpu = type(platforms.get("cpu"))
    monkeypatch.setattr(cpu, "optional_packages", lambda self: OPTIONAL)
    monkeypatch.setattr(cpu, "environment", lambda self: {"SOME_SETTING": "1"})
    code, text = report()
    assert code == 0 and "SOME_SETTING=1" in text
    missing = text.split("Missing")[1]
    for package in OPTIONAL:
        assert package.name in missing
    remedies = {one.name: one.remedy for one in doctor.python_packages(platforms.get("cpu"))}
    assert {one.name: one.remedy for one in OPTIONAL}.items() <= remedies.items()


def test_an_extra_that_a_platform_can_do_without_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = type(platforms.get("cpu"))
    monkeypatch.setattr(cpu, "extra", "gpu")
    required = [one for one in doctor.python_packages(platforms.get("cpu")) if one.needed_for == "extra gpu"]
    assert required and all(one.required for one in required)
    monkeypatch.setattr(cpu, "extra_required", False)
    found = [one for one in doctor.python_packages(platforms.get("cpu")) if one.needed_for == "extra gpu"]
    assert found and not any(one.required for one in found)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGE", "longvita-that-is-not-there")
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


def test_command_line() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--platform", "cpu"])
    assert result.exit_code == 0 and "Patches" in result.output
