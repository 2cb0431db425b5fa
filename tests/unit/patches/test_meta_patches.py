"""The patches of a dry run fit the installed packages and compute shapes."""

from __future__ import annotations

import pytest
import torch

from longvita.planning.dry_run import meta_patches
from longvita.platforms.layer_memory import ASCEND, LOCAL, NVIDIA
from megatron_patches import cpu, patch
from megatron_patches.cpu.torch_view import TorchView

PATCHES = meta_patches.patches(NVIDIA)


@pytest.mark.parametrize("one", PATCHES, ids=[one.target for one in PATCHES])
def test_the_target_has_the_recorded_signature(one: patch.Patch) -> None:
    patch.check_fits(one)
    assert one.why and one.remove_when


def test_plain_layers_need_only_the_patches_of_the_cpu() -> None:
    plain, no_rotary = ({one.target for one in meta_patches.patches(layer_memory)} for layer_memory in (LOCAL, ASCEND))
    fused = {one.target for one in PATCHES}
    assert plain == {one.target for one in cpu.patches()}
    assert fused - no_rotary == {
        "megatron.core.transformer.attention:apply_rotary_pos_emb",
        "megatron.core.utils:GlobalMemoryBuffer.get_tensor",
    }
    assert no_rotary - plain == {"megatron.core.transformer.mlp:bias_swiglu_impl"}
    patch.check_unique(PATCHES)


def test_the_meta_device_is_substituted_for_the_accelerator() -> None:
    view = next(one.replacement for one in PATCHES if isinstance(one.replacement, TorchView))
    assert view.cuda.current_device().type == "meta"
    assert view.zeros(3, device="cuda").is_meta
    assert view.tensor([[torch.ones((), device="meta")]]).shape == (1, 1)
    assert view.tensor([1, 2]).tolist() == [1, 2]


def test_fused_functions_keep_only_their_input() -> None:
    x = torch.empty(5, 1, 8, device="meta", requires_grad=True)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = meta_patches.swiglu_by_shape(meta_patches.rotary_by_shape(x, None, None), None)
    assert out.shape == (5, 1, 4) and kept == [(5, 1, 8)]
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert meta_patches.new_gather_buffer(None, (2, 3), torch.bfloat16, "mpu").dtype == torch.bfloat16
