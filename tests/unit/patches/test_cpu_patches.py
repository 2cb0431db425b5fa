"""The CPU platform's patches: they fit the installed versions, can be reverted, and have the described effect."""

from __future__ import annotations

import inspect
import logging
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.pipeline_parallel import p2p_communication
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_patches import cpu, patch
from megatron_patches.cpu.torch_view import TorchView, without_accelerator
from megatron_patches.patch import Patch

PATCHES = cpu.patches()


@pytest.fixture
def patched() -> None:
    patch.apply(PATCHES)


def test_no_two_share_a_target() -> None:
    targets = [one.target for one in PATCHES]
    assert len(targets) == len(set(targets)) > 10


@pytest.mark.parametrize("one", PATCHES, ids=[one.target for one in PATCHES])
def test_the_target_has_the_recorded_signature(one: Patch) -> None:
    patch.check_fits(one)
    assert one.why and one.remove_when


def test_a_changed_signature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p_communication, "_batched_p2p_ops", lambda *tensors: [])
    with pytest.raises(patch.PatchError, match="_batched_p2p_ops changed"):
        patch.apply(PATCHES)
    assert patch.report() == []


def test_replacements_have_the_signatures_of_the_originals() -> None:
    """A replacement has the original's parameters, with their names and defaults."""
    compared = 0
    for one in PATCHES:
        replacement = getattr(one.replacement, "__func__", one.replacement)
        if isinstance(replacement, FunctionType) and "def " in one.signature:
            parameters = str(inspect.signature(replacement).replace(return_annotation=inspect.Signature.empty))
            plain = patch.describe(replacement)
            assert plain[plain.index("(") :] == one.signature[one.signature.index("(") :], (one.target, parameters)
            compared += 1
    assert compared == 3


def test_revert_restores_every_target() -> None:
    def values() -> list[Any]:
        return [patch._resolve(one)[2:] for one in PATCHES]

    before = values()
    patch.apply(PATCHES)
    during = values()
    assert all(old[0] is not new[0] for old, new in zip(before, during))
    patch.revert()
    assert all(old[0] is new[0] and old[1] == new[1] for old, new in zip(before, values()))


def test_torch_itself_is_unchanged(patched: None) -> None:
    assert torch.zeros is not TorchView().zeros
    assert torch.cuda.current_device.__module__ == "torch.cuda"
    assert megatron_random.torch.cuda.current_device() == torch.device("cpu")
    assert megatron_random.torch.nn is torch.nn


def test_view_makes_tensors_on_the_cpu() -> None:
    view = TorchView()
    assert view.zeros(2, device="cuda").device.type == "cpu"
    assert view.empty(2, device=torch.device("cuda", 0)).device.type == "cpu"
    assert view.tensor([1, 2], dtype=torch.int32, device="cuda:1", pin_memory=True).dtype == torch.int32
    assert view.empty(2, device="meta").device.type == "meta"
    assert view.ones_like(torch.empty(3, dtype=torch.int64)).tolist() == [1, 1, 1]
    assert without_accelerator(None) is None


def test_view_answers_for_streams_and_events() -> None:
    accelerator = TorchView().cuda
    stream, event = accelerator.Stream(), accelerator.Event()
    stream.wait_stream(accelerator.current_stream())
    event.record(stream)
    with accelerator.stream(stream):
        accelerator.synchronize()
    assert event.query() and stream.record_event().query()
    assert accelerator.device_count() == 1 and not accelerator.is_available()
    assert accelerator.memory_allocated() == accelerator.max_memory_allocated() == 0


def test_tensor_type_equals_both_names(patched: None) -> None:
    """The optimizers compare with 'torch.cuda.FloatTensor', other code with the true name."""
    names = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}
    for dtype, name in names.items():
        answer = torch.zeros(1, dtype=dtype).type()
        assert answer == f"torch.cuda.{name}Tensor" and answer == f"torch.{name}Tensor"
        assert answer in [f"torch.cuda.{name}Tensor"] and answer != "torch.cuda.IntTensor"
    assert torch.zeros(1).type(torch.int64).dtype == torch.int64
    assert torch.nn.Parameter(torch.zeros(1)).type() == "torch.cuda.FloatTensor"


def test_tensors_and_modules_are_not_moved(patched: None) -> None:
    tensor = torch.zeros(2)
    assert tensor.cuda() is tensor and tensor.cuda(0, non_blocking=True) is tensor
    module = torch.nn.Linear(2, 2)
    assert module.cuda().weight.device.type == "cpu"


def test_unpatched_torch_has_no_such_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2).cuda()


def tracker() -> Any:
    states = megatron_random.CudaRNGStatesTracker()
    states.add("one", 1)
    states.add("two", 2)
    return states


def draws_of(seed: int, count: int) -> list[float]:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_fork_continues_its_state_and_keeps_the_default_one(patched: None) -> None:
    states = tracker()
    torch.manual_seed(7)
    drawn, default = [], []
    for _ in range(2):
        with states.fork("one"):
            drawn.append(torch.rand(1).item())
        default.append(torch.rand(1).item())
    assert drawn == draws_of(1, 2)
    assert default == draws_of(7, 2)


def test_fork_nests(patched: None) -> None:
    states = tracker()
    drawn: dict[str, list[float]] = {"one": [], "two": []}
    with states.fork("one"):
        drawn["one"].append(torch.rand(1).item())
        with states.fork("two"):
            drawn["two"].append(torch.rand(1).item())
            with states.fork("one"):
                drawn["one"].append(torch.rand(1).item())
            drawn["two"].append(torch.rand(1).item())
        drawn["one"].append(torch.rand(1).item())
    assert drawn == {"one": draws_of(1, 3), "two": draws_of(2, 2)}


def test_fork_restores_the_state_after_an_error(patched: None) -> None:
    states = tracker()
    torch.manual_seed(7)
    with pytest.raises(ZeroDivisionError), states.fork("one"):
        torch.rand(1)
        raise ZeroDivisionError
    assert torch.rand(1).item() == draws_of(7, 1)[0]
    with pytest.raises(KeyError, match="three"), states.fork("three"):
        pass


def test_fork_does_not_warn_of_the_cpus_generator(patched: None, caplog: pytest.LogCaptureFixture) -> None:
    states = tracker()
    with caplog.at_level(logging.DEBUG), states.fork("one"):
        torch.rand(1)
    assert caplog.records == []


def test_the_original_preload_shares_cpu_tensors() -> None:
    """The reason why longvita.checkpoint.background_write copies tensors itself, which it need not once this fails."""
    tensor = torch.arange(4.0)
    (staged,) = FileSystemWriterAsync.preload_tensors([("file", "key", ([], [("item", tensor)]))], False)
    assert staged[2][1][0][1].data_ptr() == tensor.data_ptr()


def exchange(**tensors: Any) -> list:
    names = ("tensor_send_prev", "tensor_recv_prev", "tensor_send_next", "tensor_recv_next")
    ranks = {"group": None, "prev_pipeline_rank": 1, "next_pipeline_rank": 1}
    return p2p_communication._batched_p2p_ops(**{name: tensors.get(name) for name in names}, **ranks)


def test_batched_messages_to_both_sides_of_one_rank_are_refused(patched: None) -> None:
    with pytest.raises(RuntimeError, match="overlap_p2p_comm=True, batch_p2p_comm=False"):
        exchange(tensor_send_next=torch.zeros(1), tensor_recv_prev=torch.zeros(1))
    assert exchange() == []


def test_positions_of_a_context_parallel_rank_need_no_pinned_memory(patched: None) -> None:
    group = SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    positions = torch.arange(8.0)[:, None]
    part = rope_utils.get_pos_emb_on_this_cp_rank(positions, 0, group)
    assert part.flatten().tolist() == [2, 3, 4, 5]


def test_variable_sequence_lengths_need_a_token_dispatcher() -> None:
    """A dense model is refused with the default; Platform.transformer_config_overrides sets another one."""
    fields: dict[str, Any] = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "variable_seq_lengths": True}
    with pytest.raises(ValueError, match="variable sequence length"):
        TransformerConfig(**fields)
    assert TransformerConfig(**fields, moe_token_dispatcher_type="alltoall").variable_seq_lengths
