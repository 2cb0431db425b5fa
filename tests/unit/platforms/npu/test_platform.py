"""The Ascend platform without MindSpeed, and the arguments that MindSpeed gets."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from longvita import platforms
from longvita.commands.support import doctor_tables
from longvita.config import ConfigError, load
from longvita.data.batch import CPShard
from longvita.parallel.sequence_layout import zigzag
from longvita.platforms.base import PlatformError, importable
from longvita.platforms.npu.platform import NPUPlatform, repatch_arguments
from longvita.platforms.npu.requirements import INSTALL_TRITON, SET_ENVIRONMENT, requirements
from longvita.platforms.requirements import MachineRequirement
from megatron_patches.npu import adaptor
from megatron_patches.patch import PatchError
from tests.conftest import REPOSITORY
from tests.stubs import ascend_platform
from tests.tiny import tiny_config

NPU = NPUPlatform()


@pytest.fixture
def npu_library() -> Iterator[Any]:
    with ascend_platform.torch_npu_alone() as library:
        yield library


def test_a_machine_without_it() -> None:
    import megatron.core  # noqa: F401

    assert not NPU.is_available()
    with pytest.raises(PlatformError, match="before megatron-core"):
        NPU.activate()


def test_without_mindspeed_the_error_has_the_command_that_installs_it() -> None:
    code = "from longvita.platforms.npu.platform import NPUPlatform; NPUPlatform().activate()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert "PlatformError" in result.stderr and "core_r0.16.0" in result.stderr
    assert "placeholders" in result.stderr and "longvita doctor" in result.stderr


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide triton, which comes with a torch built for GPUs."""
    monkeypatch.setattr("longvita.platforms.npu.requirements.distribution_version", lambda name: None)


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pybind11'"),
        RuntimeError("0 active drivers ([]). There should only be one."),  # triton-ascend without CANN's compiler
        ValueError("key must be a list"),  # upstream triton
        OSError("ASCEND_HOME_PATH is not set"),
        AttributeError("module 'torch_npu' has no attribute 'npu'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_failure_of_its_import_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def activate() -> None:
        raise error

    monkeypatch.setattr(adaptor, "activate", activate)
    with pytest.raises(PlatformError) as caught:
        NPU.activate()
    message = str(caught.value)
    assert f"MindSpeed cannot be imported: {type(error).__name__}: {error}; fix: install what is missing, " in message
    assert "CANN toolkit: " in message and f"triton-ascend: {INSTALL_TRITON}" in message
    assert "pybind11: pip install -e '.[npu]'" in message and "longvita doctor" in message
    assert "firmware" not in message  # no import needs it


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'mindspeed.te'"), PatchError("it changed")])
def test_a_patch_that_does_not_fit_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def patches(self: object) -> list:
        raise error

    monkeypatch.setattr(adaptor, "activate", lambda: None)
    monkeypatch.setattr(NPUPlatform, "patches", patches)
    with pytest.raises(PlatformError, match=str(error)):
        NPU.activate()


@pytest.mark.usefixtures("without_triton")
def test_packages_that_mindspeed_imports_are_required() -> None:
    asked = {one.name: one for one in requirements()}
    for name in ("einops", "scipy", "pybind11"):
        assert asked[name].required and asked[name].remedy == "pip install -e '.[npu]' -c constraints.txt"
    assert asked["triton-ascend"].required
    # With dependencies pip would install torch's, and with them upstream triton again.
    assert "--no-deps triton-ascend" in asked["triton-ascend"].remedy
    assert asked["mindspeed"].module == "mindspeed.megatron_adaptor"
    # Its requirements pin an older numpy than this project's.
    assert "--no-deps" in asked["mindspeed"].remedy and "core_r0.16.0" in asked["mindspeed"].remedy


def test_the_toolkit_without_its_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cann() -> MachineRequirement:
        return next(one for one in requirements() if one.name == "CANN toolkit")

    monkeypatch.setattr("shutil.which", lambda name: None)
    assert cann().found is None and "--install" in cann().remedy
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))  # another folder than the default one
    assert cann().found == str(tmp_path)
    assert cann().fault == "its compiler bisheng is not on PATH" and cann().remedy == SET_ENVIRONMENT
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert cann().works


@pytest.mark.parametrize(
    ("torch_npu", "fault"), [("2.13.0", ""), ("2.13.0.post1", ""), ("2.8.0", "it needs torch of the same version")]
)
def test_torch_and_torch_npu_have_one_version(monkeypatch: pytest.MonkeyPatch, torch_npu: str, fault: str) -> None:
    versions = {"torch-npu": torch_npu, "torch": "2.13.0+cpu"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name, "1.0"))
    found = next(one for one in requirements() if one.name == "torch-npu")
    assert found.found == torch_npu
    assert found.fault.startswith(fault) and found.works == (not fault)


def test_a_package_of_devices_that_fails_is_no_missing_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a run with platform: auto would train on the CPU without a word."""
    (tmp_path / "torch_npu.py").write_text("raise OSError('libhccl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    importable.cache_clear()
    try:
        for ask in (NPU.is_available, lambda: platforms.get("auto")):
            with pytest.raises(PlatformError, match="libhccl.so.*fix: source .*set_env.sh, or .*platform=cpu"):
                ask()
    finally:
        importable.cache_clear()


@pytest.mark.parametrize(
    ("installed", "found", "fault"),
    [
        ({"triton-ascend": "3.2.0"}, "3.2.0", ""),
        ({"triton-ascend": "3.2.0", "triton": "3.9.0"}, "3.2.0", "upstream triton 3.9.0 has its module"),
        ({"triton": "3.9.0"}, None, "upstream triton 3.9.0 has its module"),
        ({}, None, ""),
    ],
    ids=["its own", "both", "upstream alone", "neither"],
)
def test_upstream_triton_is_the_wrong_one(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], found: str | None, fault: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr("longvita.platforms.requirements.importable", lambda module: True)
    (triton,) = (one for one in requirements() if one.name == "triton-ascend")
    assert triton.found == found
    assert triton.fault.startswith(fault) and bool(triton.fault) == bool(fault)
    assert triton.works == (installed == {"triton-ascend": "3.2.0"})


def test_the_recipe_of_other_platforms_runs_here() -> None:
    config = tiny_config(layout={"context_parallel": 2})
    assert NPU.problems(config) == []
    assert NPU.ulysses_size(config) == 1
    arguments = repatch_arguments(config)
    adaptor.check(arguments)
    assert arguments["context_parallel_size"] == 2 and arguments["seq_length"] == config.data.sequence_length


RECIPES = sorted(path for path in (REPOSITORY / "configs" / "train").glob("stage*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_runs_here(recipe: Path) -> None:
    """One YAML for both accelerators: the platform decides the differences."""
    config = load(recipe)
    assert config.platform == "auto"
    assert NPU.problems(config) == []
    adaptor.check(repatch_arguments(config))
    assert config.data.sequence_length % (2 * config.layout.context_parallel) == 0


def test_ulysses_is_refused_with_the_reason() -> None:
    config = tiny_config(layout={"context_parallel": 2, "ulysses": 2})
    (problem,) = NPU.problems(config)
    assert problem.field == "layout.ulysses" and "loss is wrong" in problem.message and problem.fix
    with pytest.raises(ConfigError, match="IndexError"):
        NPU.configure(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_parallel_algo": "ulysses_cp_algo"}, "IndexError"),
        ({"context_parallel_algo": "kvallgather_cp_algo"}, "contiguous CP shards"),
        ({"context_parallel_algo": "hybrid_cp_algo"}, "not been checked"),
        ({"context_parallel_algo": "new_cp_algo"}, "does not know it"),
        ({"attention_mask_type": "general"}, "attention_mask_type must be 'causal'"),
        ({"use_flash_attn": False}, "use_flash_attn must be True"),
        ({"transformer_impl": "local"}, "transformer_impl"),
        ({"reset_attention_mask": True}, "reset_attention_mask"),
        ({"context_parallel_size": "2"}, "must be an integer"),
        ({"seq_length": None}, "must be an integer"),
    ],
)
def test_arguments_that_mindspeed_computes_wrongly_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchError, match=message):
        adaptor.check(repatch_arguments(tiny_config()) | change)


NEEDED = (
    "use_flash_attn",
    "attention_mask_type",
    "reset_attention_mask",
    "reset_position_ids",
    "use_legacy_models",
    "transformer_impl",
    "context_parallel_size",
    "context_parallel_algo",
    "seq_length",
    "micro_batch_size",
)
"""Arguments that MindSpeed reads without a default or silently computes wrongly."""


@pytest.mark.parametrize("name", NEEDED)
def test_an_argument_that_is_missing(name: str) -> None:
    arguments = repatch_arguments(tiny_config())
    del arguments[name]
    with pytest.raises(PatchError, match=name):
        adaptor.check(arguments)


def test_the_optimizer_format_is_the_one_that_loads() -> None:
    assert NPU.optimizer_sharding_type == "dp_reshardable"
    assert NPU.backend == "hccl"


def test_all_four_fields_hold_the_padded_bounds() -> None:
    layout = zigzag((5, 0, 13), 2, 1)
    rows = torch.zeros(layout.local_length, dtype=torch.int64)
    params = NPU.library_seq_params(CPShard(layout, layout, rows))
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, layout.local_length]
    attention = params.attention
    for name in ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded"):
        assert getattr(attention, name).tolist() == [0, 8, 24]


def test_memory_and_name_come_from_torch_npu(npu_library: Any) -> None:
    npu = npu_library.npu
    assert NPU.is_available()
    assert NPU.memory() == {"used": npu.ALLOCATED, "peak": npu.PEAK, "free": npu.FREE, "total": npu.TOTAL}
    NPU.set_device(3)
    assert npu.current_device() == 3
    assert NPU.describe() == "8 x Ascend910B3"


def test_the_kernel_for_generation(npu_library: Any) -> None:
    """Equals the CPU's kernel: documents with their logsumexps, and queries over all keys."""
    from longvita.platforms.cpu.attention import FlashKernel
    from longvita.platforms.npu.layers import FusedKernel

    generator = torch.Generator().manual_seed(1)
    q = torch.randn(9, 4, 8, generator=generator)
    k, v = (torch.randn(9, 2, 8, generator=generator) for _ in range(2))
    ours, cpu = FusedKernel(), FlashKernel()
    for found, right in zip(
        ours.causal_forward(q, k, v, [0, 4, 9], 0.3), cpu.causal_forward(q, k, v, [0, 4, 9], 0.3), strict=True
    ):
        torch.testing.assert_close(found, right)
    for found, right in zip(ours.full_forward(q[:2], k, v, 0.3), cpu.full_forward(q[:2], k, v, 0.3), strict=True):
        torch.testing.assert_close(found, right)


def test_a_tensor_is_offloaded_and_restored(npu_library: Any) -> None:
    from longvita.platforms.pinned_offload import PinnedStore

    tensor = torch.randn(3, 5)
    offloaded = PinnedStore(npu_library.npu, pinned=False).put(tensor)
    offloaded.start()
    assert torch.equal(offloaded.fetch(), tensor)


def test_doctor_prints_the_decisions() -> None:
    console = Console(file=io.StringIO(), width=200)
    doctor_tables.print_decisions(console, NPU)
    text = console.file.getvalue()
    for decision in ("ring", "dp_reshardable", "Ulysses"):
        assert decision in text


STOP = """
import sys
from longvita import platforms


class StopAtActivation:
    name = "stop"
    device_package = ""

    def is_available(self):
        return True

    def requirements(self):
        return []

    def activate(self):
        found = [name for name in sys.modules if name.split(".")[0] == "megatron"]
        print("megatron before the platform:", found[:3])
        raise SystemExit(0)


platforms.get = platforms.named = lambda name="auto": StopAtActivation()
"""
CONFIG = "from longvita.config.schema import Config; config = Config().model_dump(mode='json')\n"
SETTINGS = """
from longvita.inference.settings import EngineSettings
Named = type("Named", (), {"platform": "stop"})
EngineSettings.from_payload = classmethod(lambda cls, payload: type("S", (), {"config": Named}))
"""
ENTRIES = {
    "train": CONFIG + "from longvita.commands.train import train_rank; train_rank({'stages': [config]})",
    "generate": SETTINGS + "from longvita.commands.generate import generate_rank; generate_rank({'settings': {}})",
    "chat": SETTINGS + "from longvita.commands.chat import chat_rank; chat_rank({'settings': {}})",
    "evaluate": SETTINGS + "from longvita.commands.evaluate import evaluate_rank; evaluate_rank({'settings': {}})",
    "verify": CONFIG + "from longvita.commands.verify import verify_rank; verify_rank({'config': config})",
    "convert": CONFIG + "from longvita.commands.convert import convert_rank; convert_rank({'config': config})",
    "doctor": "from longvita.commands import doctor; doctor.doctor('stop')",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_process_imports_megatron_before_its_platform_is_active(entry: str) -> None:
    """MindSpeed must be imported first."""
    code = STOP + ENTRIES[entry]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert "megatron before the platform: []" in result.stdout, result.stdout + result.stderr[-2000:]


def test_importing_the_library_imports_no_megatron() -> None:
    code = (
        "import sys, longvita, longvita.cli, longvita.commands.doctor, longvita.platforms.base, "
        "longvita.platforms.cpu.platform, longvita.platforms.npu.platform, longvita.processes; "
        "print([name for name in sys.modules if name.split('.')[0] == 'megatron'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "[]"


def test_tests_over_mindspeed_source_are_listed_if_it_is_missing() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/distributed/platforms/test_npu.py"]
    environment = {name: value for name, value in os.environ.items() if name != "MINDSPEED_SOURCE"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    selected, _, left_out = result.stdout.partition("deselected (tests that need")
    for test in ("test_activation_after_megatron_is_an_error", "test_generate_prints_the_answer_alone"):
        assert f"{test}[stub]" in selected and f"{test}[source]" not in selected
        assert f"{test}[source]" in left_out
    environment["MINDSPEED_SOURCE"] = "somewhere"
    result = subprocess.run(
        [*command, "-m", "mindspeed"], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert result.returncode == 0 and "test_activation_after_megatron_is_an_error[source]" in result.stdout
