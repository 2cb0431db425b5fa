"""The CPU platform, and the selection of a platform."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from megatron.core.transformer import transformer_block
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from longvita import platforms
from longvita.config.schema import Config
from longvita.errors import UserError
from longvita.platforms.base import Platform, PlatformError
from longvita.platforms.norms import RMSNorm
from megatron_patches import patch


@pytest.fixture
def cpu() -> Platform:
    return platforms.get("cpu")


def config(platform: Platform, virtual_pipeline: int = 1, **fields: object) -> TransformerConfig:
    overrides = platform.transformer_config_overrides(virtual_pipeline)
    return TransformerConfig(num_layers=2, hidden_size=16, num_attention_heads=2, **(overrides | fields))


def test_names_are_those_of_modules() -> None:
    assert "cpu" in platforms.NAMES


def test_a_platform_that_this_version_does_not_have() -> None:
    with pytest.raises(PlatformError, match=r"'abacus'.*cpu"):
        platforms.get("abacus")
    assert issubclass(PlatformError, UserError)


def test_auto_selects_the_first_available_device(monkeypatch: pytest.MonkeyPatch, cpu: Platform) -> None:
    monkeypatch.setattr(platforms, "NAMES", ("cpu",))
    assert platforms.get("auto") is cpu
    monkeypatch.setattr(type(cpu), "is_available", lambda self: False)
    with pytest.raises(PlatformError, match="no device"):
        platforms.get("cpu")


def test_a_config_of_an_unknown_platform_is_refused() -> None:
    (problem,) = platforms.name_problems(Config(platform="cpuu"))
    assert problem.field == "platform" and problem.fix == "did you mean cpu?"
    assert "is not a platform; known: auto" in problem.message
    assert platforms.name_problems(Config(platform="auto")) == []


def test_activate_is_idempotent_and_returns_the_patches(cpu: Platform) -> None:
    applied = cpu.activate()
    assert len(applied) > 10 and cpu.activate() == applied
    assert set(map(id, applied)) <= set(map(id, patch.report()))


def test_device(cpu: Platform) -> None:
    cpu.set_device(3)
    cpu.synchronize()
    assert cpu.device == torch.device("cpu") and cpu.backend == "gloo"
    assert "cores" in cpu.describe()


def test_memory_is_counted(cpu: Platform) -> None:
    memory = cpu.memory()
    assert 2**20 < memory["used"] < memory["total"] and memory["peak"] > 2**20
    assert 2**20 < memory["free"] < memory["total"]


def test_allocated_memory_counts_as_used() -> None:
    """In a process without other memory that could be paged out or reused during the test."""
    size = 64 * 2**20
    code = (
        "import torch; from longvita import platforms; cpu = platforms.get('cpu'); before = cpu.memory()['used']; "
        f"held = torch.ones({size}, dtype=torch.uint8); print(cpu.memory()['used'] - before)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) > size // 2


def test_free_memory_is_divided_by_the_processes(cpu: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = cpu.memory()["free"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cpu.memory()["free"] == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_measured_once(cpu: Platform, dtype: torch.dtype) -> None:
    assert cpu.peak_flops(dtype) == cpu.peak_flops(dtype) > 1e6


def test_overrides_are_fields_of_the_config(cpu: Platform) -> None:
    built = config(cpu)
    for name, value in cpu.transformer_config_overrides().items():
        assert getattr(built, name) == value
    assert config(cpu, variable_seq_lengths=True).variable_seq_lengths


def test_pipeline_messages_are_never_batched(cpu: Platform) -> None:
    plain, interleaved = config(cpu), config(cpu, virtual_pipeline=2)
    assert not plain.batch_p2p_comm and not plain.overlap_p2p_comm
    assert not interleaved.batch_p2p_comm and interleaved.overlap_p2p_comm


def test_the_block_s_own_final_norm_is_not_ours(cpu: Platform) -> None:
    """LayerNormImpl refuses sequence parallel; a block spec with Platform.norm() never gets it."""
    built = config(cpu, pipeline_model_parallel_size=1)
    spec = cpu.language_layer_spec()
    assert transformer_block._get_block_submodules(built, spec, None, 0).layer_norm is WrappedTorchNorm
    ours = transformer_block.TransformerBlockSubmodules(layer_specs=[spec] * 2, layer_norm=cpu.norm())
    assert transformer_block._get_block_submodules(built, ours, None, 0).layer_norm is RMSNorm


def test_random_states_are_restored(cpu: Platform, caplog: pytest.LogCaptureFixture) -> None:
    cpu.activate()
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("one", 1)
    state = cpu.rng_state()
    draws = []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with tracker.fork("one"):
                inside = torch.rand(2)
            draws.append(torch.cat([inside, torch.rand(2)]))
            cpu.set_rng_state(state)
    assert torch.equal(*draws) and not caplog.records
    tracker.reset()
