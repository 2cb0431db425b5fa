"""The Nvidia platform, as far as no GPU is needed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from longvita import platforms, processes
from longvita.attention.seq_params import LibrarySeqParams, library_seq_params
from longvita.config.checks import find_problems
from longvita.config.errors import ConfigError
from longvita.config.loader import load
from longvita.data.batch import CPShard
from longvita.model.transformer_config import language_transformer_config, vision_transformer_config
from longvita.parallel.sequence_layout import zigzag
from longvita.platforms import base
from longvita.platforms.base import Platform, PlatformError, importable
from longvita.platforms.cuda import requirements
from longvita.platforms.cuda.flash_kernels import TorchFlashKernel
from longvita.platforms.cuda.platform import CUDAPlatform
from longvita.platforms.cuda.requirements import APEX, FLASH_ATTN, INSTALL_ENGINE
from longvita.platforms.cuda.te_layers import method_of
from longvita.platforms.layer_memory import NVIDIA
from longvita.platforms.npu.platform import NPUPlatform
from megatron_patches import cuda as patches_of_cuda
from megatron_patches import patch
from tests.conftest import REPOSITORY
from tests.tiny import tiny_config


class WithEngine(CUDAPlatform):
    """The platform of a Hopper machine with Transformer Engine."""

    def is_available(self) -> bool:
        return True

    def has_engine(self) -> bool:
        return True

    def capability(self) -> tuple[int, int]:
        return 9, 0

    def transformer_config_overrides(self, virtual_pipeline: int = 1) -> dict[str, Any]:
        # megatron-core checks for the fused kernel at once.
        return super().transformer_config_overrides(virtual_pipeline) | {"apply_rope_fusion": False}


class WithoutEngine(WithEngine):
    def has_engine(self) -> bool:
        return False


def groups_of(ulysses: int, ring: int) -> Any:
    """Sizes of context-parallel groups."""
    return types.SimpleNamespace(
        cp_size=ulysses * ring,
        cp_ulysses=types.SimpleNamespace(size=lambda: ulysses),
        cp_ring=types.SimpleNamespace(size=lambda: ring),
    )


def test_without_a_gpu_it_is_known_and_not_available() -> None:
    assert "cuda" in platforms.NAMES
    if not torch.cuda.is_available():
        with pytest.raises(PlatformError, match="no device"):
            platforms.get("cuda")
        assert platforms.get("auto").name == "cpu"


def test_the_description_names_the_implementation_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    start = "8 x NVIDIA H200 (compute capability 9.0), attention"
    assert WithEngine().describe() == f"{start} and layers by Transformer Engine"
    assert WithoutEngine().describe() == f"{start} by torch's flash kernel, layers by megatron-core"


def test_decisions_name_layout_and_adam() -> None:
    decided, without = dict(WithEngine().decisions()), dict(WithoutEngine().decisions())
    assert "zigzag" in decided["documents under context parallelism"] and decided["Adam"] == "Transformer Engine's"
    assert without["Adam"] == "ours, on torch's kernel" and "not fused" in without["gradient accumulation"]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PlatformError, match="at most 2 processes"):
        CUDAPlatform().set_device(2)


@pytest.mark.parametrize("own_adam", [True, False])
def test_patches_fit_and_can_be_reverted(own_adam: bool) -> None:
    patch.revert()
    for one in patches_of_cuda.patches(own_adam):
        patch.check_fits(one)
    before = len(patch.report())
    patch.apply(patches_of_cuda.patches(own_adam))
    assert len(patch.report()) - before == (6 if own_adam else 1)
    patch.revert()


def test_a_changed_target_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.pipeline_parallel import p2p_communication

    patch.revert()
    monkeypatch.setattr(p2p_communication, "_batched_p2p_ops", lambda *tensors: [])
    with pytest.raises(patch.PatchError, match="p2p_communication:_batched_p2p_ops changed"):
        patch.apply(patches_of_cuda.patches(False))


def test_documents_are_placed_zigzag_only_for_the_engine() -> None:
    lengths = (33, 0, 7, 100)
    layout = WithEngine().library_layout(lengths, 4, 2)
    assert layout is not None and layout.cp_size == 4 and layout.tp_size == 2
    # FP8 products need multiples of sixteen rows on each TP rank.
    assert layout.local_length % 32 == 0 and layout.used == [layout.local_length] * 4
    assert WithoutEngine().library_layout(lengths, 4, 2) is None


@pytest.mark.parametrize("real", [True, False])
def test_bounds_of_the_whole_sequence(real: bool) -> None:
    layout = zigzag((5, 0, 12), 2, 2)
    params = library_seq_params(CPShard(layout, layout, layout.tokens(1)), real)
    assert isinstance(params, LibrarySeqParams) and params.cu_seqlens_q.tolist() == [0, layout.local_length]
    inner = params.attention
    assert inner.qkv_format == "thd"
    assert inner.cu_seqlens_q_padded.tolist() == inner.cu_seqlens_kv_padded.tolist() == [0, 8, 20]
    assert inner.cu_seqlens_q.tolist() == inner.cu_seqlens_kv.tolist() == ([0, 5, 17] if real else [0, 8, 20])
    # Transformer Engine 2.20 recognizes by object identity that there is no padding between documents.
    assert (inner.cu_seqlens_q is inner.cu_seqlens_q_padded) == (not real)
    assert (inner.cu_seqlens_kv is inner.cu_seqlens_kv_padded) == (not real)
    assert inner.max_seqlen_q == inner.max_seqlen_kv == 12 and inner.cu_seqlens_q.dtype == torch.int32


def test_kernels_of_older_gpus_get_no_padding_between_documents() -> None:
    assert WithEngine().pads_between_documents()
    older = WithEngine()
    older.capability = lambda: (8, 0)  # type: ignore[method-assign]
    assert not older.pads_between_documents()


def test_messages_between_stages_have_any_length_where_documents_are_padded() -> None:
    layout = {"context_parallel": 2, "pipeline_parallel": 2}
    config = tiny_config(layout=layout, training={"precision": "bf16"})
    assert language_transformer_config(config, WithEngine()).variable_seq_lengths
    assert not language_transformer_config(config, WithoutEngine()).variable_seq_lengths


def refusals(platform: Any, config: Any) -> dict[str, str]:
    """Messages of the settings that a platform refuses, by field."""
    return {problem.field: f"{problem.message}; {problem.fix}" for problem in platform.problems(config)}


def test_attention_of_split_sequences_is_bf16_s_alone() -> None:
    layout = {"context_parallel": 2, "ulysses": 1}
    assert "use bf16" in refusals(WithEngine(), tiny_config(layout=layout))["training.precision"]
    assert refusals(WithEngine(), tiny_config(layout=layout, training={"precision": "bf16"})) == {}
    assert refusals(WithoutEngine(), tiny_config(layout=layout)) == refusals(WithEngine(), tiny_config()) == {}


def test_interleaved_stages_send_one_by_one() -> None:
    plain, interleaved = (CUDAPlatform().transformer_config_overrides(chunks) for chunks in (1, 2))
    assert plain["batch_p2p_comm"] and not plain["overlap_p2p_comm"]
    assert not interleaved["batch_p2p_comm"] and interleaved["overlap_p2p_comm"]


def test_a_stage_frees_outputs_that_it_has_sent() -> None:
    """As plans assume (longvita.platforms.layer_memory)."""
    config = language_transformer_config(tiny_config(), WithoutEngine())
    assert config.deallocate_pipeline_outputs == NVIDIA.frees_stage_outputs


def test_fp8_applies_only_to_the_language_model() -> None:
    config = tiny_config(training={"precision": "bf16", "fp8": "tensorwise"})
    language = language_transformer_config(config, WithEngine())
    assert (language.fp8, language.fp8_recipe) == ("hybrid", "tensorwise")
    assert vision_transformer_config(config, WithEngine()).fp8 is None


FP8 = "training.fp8"
WIDE = {"model": {"language": {"ffn_hidden_size": 80}}}


@pytest.mark.parametrize(
    ("platform", "sections", "field", "message"),
    [
        (platforms.get("cpu"), {"training": {"fp8": "tensorwise"}}, FP8, "platform cpu has neither"),
        (NPUPlatform(), {"training": {"fp8": "tensorwise"}}, FP8, "platform npu has neither"),
        (WithoutEngine(), {"training": {"fp8": "tensorwise"}}, FP8, "needs Transformer Engine; install it with pip"),
        (WithEngine(), {"training": {"fp8": "mxfp8"}}, FP8, "compute capability 10.0; this one has 9.0"),
        (
            WithEngine(),
            {"training": {"fp8": "blockwise"}, "data": {"sequence_length": 72}},
            "data.sequence_length",
            "multiple of 16 with training.fp8 blockwise; 64, or 80",
        ),
        (
            CUDAPlatform(),
            {"training": {"fp8": "mxfp8"}, "data": {"sequence_length": 80}},
            "data.sequence_length",
            "multiple of 32 with training.fp8 mxfp8; 64, or 96",
        ),
        (WithEngine(), {"training": {"fp8": "blockwise", "mlp_chunk_size": 40}}, "training.mlp_chunk_size", "of 16"),
        (CUDAPlatform(), WIDE | {"training": {"fp8": "mxfp8"}}, "model.language.ffn_hidden_size", "gives 80 columns"),
    ],
)
def test_fp8_is_refused_with_the_reason(platform: Any, sections: dict, field: str, message: str) -> None:
    training = {"precision": "bf16"} | sections["training"]
    config = tiny_config(**{**sections, "training": training})
    assert message in refusals(platform, config)[field]
    with pytest.raises(ConfigError, match=re.escape(field)):
        Platform.configure(platform, config)


def test_lengths_that_fp8_supports_are_not_refused() -> None:
    """Nor is any scaling without a GPU, nor any length of a sequence that is split and padded."""
    for sections in ({"data": {"sequence_length": 96}}, {"layout": {"context_parallel": 2, "ulysses": 1}}):
        config = tiny_config(**sections, training={"precision": "bf16", "fp8": "tensorwise"})
        assert refusals(WithEngine(), config) == {}
    assert FP8 not in refusals(CUDAPlatform(), tiny_config(training={"precision": "bf16", "fp8": "mxfp8"}))


def test_flags_whose_buffers_are_not_allocated_are_refused() -> None:
    config = tiny_config(training={"megatron": {"tp_comm_overlap": True}})
    assert "buffers" in refusals(WithEngine(), config)["training.megatron.tp_comm_overlap"]
    assert refusals(WithoutEngine(), config) == {}


@pytest.mark.parametrize("recipe", ["stage4_1m", "stage3_128k", "stage4_1m_72b", "stage2_general_72b"])
def test_shipped_recipes_are_accepted(recipe: str) -> None:
    config = load(REPOSITORY / "configs" / "train" / f"{recipe}.yaml")
    assert refusals(WithEngine(), config) == {}


def test_fp8_requires_bf16() -> None:
    problems = find_problems(tiny_config(training={"fp8": "tensorwise"}))
    assert "training.fp8" in [problem.field for problem in problems]
    problems = find_problems(tiny_config(training={"fp8": "tensorwise", "precision": "bf16"}))
    assert "training.fp8" not in [problem.field for problem in problems]


@pytest.mark.parametrize(
    ("heads", "kv_groups", "ulysses", "ring", "method"),
    [
        (40, 8, 2, 1, "a2a"),
        (40, 8, 4, 2, "a2a+p2p"),
        (40, 8, 1, 2, "all_gather"),
        (40, 8, 1, 4, "p2p"),
        (5, 1, 1, 2, "all_gather"),
        (5, 1, 1, 8, "p2p"),
    ],
)
def test_how_keys_and_values_are_communicated(heads: int, kv_groups: int, ulysses: int, ring: int, method: str) -> None:
    fields = {"num_attention_heads": heads, "num_query_groups": kv_groups, "tensor_model_parallel_size": 1}
    assert method_of(types.SimpleNamespace(**fields), groups_of(ulysses, ring), True) == method


def test_keys_are_not_gathered_for_kernels_of_older_gpus() -> None:
    """FlashAttention 2 reads gathered keys of all documents but the first from the wrong rows."""
    config = types.SimpleNamespace(num_attention_heads=5, num_query_groups=1, tensor_model_parallel_size=1)
    assert method_of(config, groups_of(1, 2), True) == "all_gather"
    assert method_of(config, groups_of(1, 2), False) == "p2p"


def test_groups_that_do_not_divide_over_ulysses_are_refused() -> None:
    layout = {"context_parallel": 4, "ulysses": 4}
    model = {"language": {"num_attention_heads": 8, "num_query_groups": 2}}
    config = tiny_config(layout=layout, model=model, training={"precision": "bf16"})
    assert "does not divide the 8 heads and 2 groups" in refusals(WithEngine(), config)["layout.ulysses"]
    assert refusals(WithoutEngine(), config) == {}


def test_an_engine_that_cannot_be_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """megatron-core would silently continue without it."""
    package = tmp_path / "transformer_engine" / "pytorch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise OSError('libcublas.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PlatformError, match=r"cannot be loaded: libcublas.*pip install"):
        WithEngine().activate()
    install(tmp_path, "transformer_engine_cu12")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(PlatformError, match=r"cannot be loaded: it is built for CUDA 12, and torch .* \(libcublas"):
        WithEngine().activate()
    sys.modules.pop("transformer_engine", None)


def install(folder: Path, package: str) -> None:
    """What importlib.metadata finds of an installed package."""
    record = folder / f"{package}-2.20.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 2.20.2\n")


@pytest.mark.parametrize(
    ("libraries", "cuda", "fault"),
    [
        (["transformer_engine_cu13"], "13.0", ""),
        (["transformer-engine-cu12"], "12.8", ""),
        ([], "13.0", ""),  # built from source
        (["transformer_engine_cu12"], None, ""),  # the requirement of torch names it
        (["transformer_engine_cu12"], "13.0", "is built for CUDA 12, and torch 2.13.0+x for CUDA 13.0"),
        (["transformer_engine_cu13"], "12.8", "is built for CUDA 13, and torch 2.13.0+x for CUDA 12.8"),
        (
            ["transformer_engine_cu12", "transformer_engine_cu13"],
            "13.0",
            "is installed for CUDA 12 and 13, whose libraries overwrite each other",
        ),
    ],
)
def test_an_engine_for_another_cuda_version_than_torch_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libraries: list[str], cuda: str | None, fault: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.13.0+x")
    for package in libraries:
        install(tmp_path, package)
    (engine,) = (one for one in requirements.requirements() if one.name == "transformer-engine")
    assert engine.fault == fault
    assert engine.remedy.endswith(f"{INSTALL_ENGINE} --no-cache-dir" if fault else INSTALL_ENGINE)
    for package in libraries:
        assert (package.replace("_", "-") in engine.remedy) == bool(fault)


def test_the_page_has_the_commands_that_install_the_engine_after_torch() -> None:
    page = (REPOSITORY / "docs" / "hardware.md").read_text(encoding="utf-8")
    assert f"\npip install -e . -c constraints.txt\n{INSTALL_ENGINE}\n" in page


def test_the_pinned_engine_is_for_the_cuda_version_of_the_pinned_torch() -> None:
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert "\ntorch==2.13.0\n" in pins, "look up which CUDA version PyPI's torch of this version is built for"
    assert re.findall(r"^transformer-engine-cu(\d+)==", pins, re.MULTILINE) == ["13"]


def test_a_user_s_variable_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = CUDAPlatform()
    for name in platform.environment():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    variables = processes.with_defaults(platform.environment())
    assert variables["NCCL_NVLS_ENABLE"] == "1" and variables["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert platforms.get("cpu").environment() == {}


def test_the_other_apex_is_not_nvidias(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importable.cache_clear()
    assert importable("apex") and not importable(APEX)
    importable.cache_clear()
    sys.modules.pop("apex", None)
    assert not importable("nothing.of.the.kind")


def test_flash_attn_4_alone_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    importable.cache_clear()
    assert importable("flash_attn") and not importable(FLASH_ATTN)
    assert isinstance(CUDAPlatform().kernel(), TorchFlashKernel)
    importable.cache_clear()
    sys.modules.pop("flash_attn")  # the search for its submodule has imported it


def test_peaks_are_those_of_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert CUDAPlatform().peak_flops(torch.bfloat16) == 989.4e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    assert CUDAPlatform().peak_flops(torch.bfloat16) == 756e12
    for name, peak in {"H200": 989.4, "H200 NVL": 835.5, "H20": 148.0, "GB200": 2500.0, "GH200 480GB": 989.4}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: f"NVIDIA {name}")
        assert CUDAPlatform().peak_flops(torch.bfloat16) == peak * 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "something else")
    monkeypatch.setattr(base, "_measured_flops", lambda *arguments: 1.0)
    assert CUDAPlatform().peak_flops(torch.bfloat16) == 1.0


def test_memory_is_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory_allocated": 3, "max_memory_allocated": 5, "memory_reserved": 8}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10, 20))
    assert CUDAPlatform().memory() == {"used": 3, "peak": 5, "free": 15, "total": 20}
