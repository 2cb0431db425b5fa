"""What megatron-core needs to run by shape: the CPU's patches, with the accelerator in the place of the meta device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from longvita.platforms.layer_memory import LayerMemory
from megatron_patches.patch import Patch

META = torch.device("meta")


class _Rotated(torch.autograd.Function):
    """A rotation by a fused kernel: a new tensor of the same shape, and nothing kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(grads[0])


def rotated_by_shape(
    t: torch.Tensor, freqs: Any, config: Any, cu_seqlens: Any = None, mscale: float = 1.0, cp_group: Any = None
) -> torch.Tensor:
    """A tensor like `t`, as a fused rotary kernel leaves it."""
    return _Rotated.apply(t)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up of [..., 2 f] by a fused kernel, which keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def swiglu_by_shape(
    input: torch.Tensor, bias: Any, fp8_input_store: bool = False, cpu_offload_input: bool = False
) -> torch.Tensor:
    """What a fused SwiGLU without bias makes of [..., 2 f]: [..., f]."""
    return _SwiGLU.apply(input)


def gathered_anew(self: Any, tensor_shape: Any, dtype: Any, name: str, mem_alloc_context: Any = None) -> torch.Tensor:
    """A new tensor for each gathering, as the accelerators' linear layers have it."""
    return torch.empty(tensor_shape, dtype=dtype, device=META)


_FUSED = [
    Patch(
        target="megatron.core.transformer.mlp:bias_swiglu_impl",
        replacement=swiglu_by_shape,
        why="in a found, has several intermediates at once, since nothing compiles it to one kernel",
        versions="megatron-core==0.16.1",
        remove_when="a dry run can name the accelerator's kernel without having it",
        signature="def bias_swiglu_impl(input, bias, fp8_input_store=False, cpu_offload_input=False)",
    ),
    Patch(
        target="megatron.core.utils:GlobalMemoryBuffer.get_tensor",
        replacement=gathered_anew,
        why="in a found, keeps the rows that sequence parallelism gathered, which fused linear layers let go of",
        versions="megatron-core==0.16.1",
        remove_when="a dry run can name the accelerator's linear layers without having them",
        signature="def get_tensor(self, tensor_shape, dtype, name, mem_alloc_context=None)",
    ),
]
_FUSED_ROTARY = [
    Patch(
        target="megatron.core.transformer.attention:apply_rotary_pos_emb",
        replacement=rotated_by_shape,
        why="in a found, keeps cosines and sines for each layer, which a fused kernel does not",
        versions="megatron-core==0.16.1",
        remove_when="a dry run can name the accelerator's kernel without having it",
        signature="def apply_rotary_pos_emb(t, freqs, config, cu_seqlens=None, mscale=1.0, cp_group=None)",
    ),
]


def _tensor(make: Any) -> Any:
    """torch.tensor, which would read the values of tensors in a list."""

    @functools.wraps(make)
    def tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, list) and data and _holds_shapes(data):
            return torch.stack([tensor(one) if isinstance(one, list) else one for one in data])
        return make(data, *args, **kwargs)

    return tensor


def _holds_shapes(data: Any) -> bool:
    if isinstance(data, list):
        return any(map(_holds_shapes, data))
    return isinstance(data, torch.Tensor) and data.is_meta


def patches(layer_memory: LayerMemory) -> list[Patch]:
    """The patches of a dry run of these layer_memory."""
    from megatron_patches import cpu
    from megatron_patches.cpu.torch_view import TorchView

    view = TorchView(META)
    view.tensor = _tensor(view.tensor)  # type: ignore[attr-defined]
    own = [
        dataclasses.replace(patch, replacement=view, why=f"in a found, {patch.why}")
        if isinstance(patch.replacement, TorchView)
        else patch
        for patch in cpu.patches()
    ]
    return [*own, *(_FUSED if layer_memory.fused else []), *(_FUSED_ROTARY if layer_memory.fused_rotary else [])]
