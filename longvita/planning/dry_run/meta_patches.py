"""Patches that let megatron-core run by shape: those of the CPU, with the meta device in place of the accelerator."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from longvita.platforms.layer_memory import LayerMemory
from megatron_patches.patch import Patch

META = torch.device("meta")


class _ShapeRotary(torch.autograd.Function):
    """The rotary embedding by a fused kernel: a new tensor of the same shape; nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(grads[0])


def rotary_by_shape(
    t: torch.Tensor, freqs: Any, config: Any, cu_seqlens: Any = None, mscale: float = 1.0, cp_group: Any = None
) -> torch.Tensor:
    """Return a tensor like `t`, as a fused rotary kernel does."""
    return _ShapeRotary.apply(t)


class _ShapeSwiGLU(torch.autograd.Function):
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
    """Return [..., f] for [..., 2 f], as a fused SwiGLU without bias does."""
    return _ShapeSwiGLU.apply(input)


def new_gather_buffer(
    self: Any, tensor_shape: Any, dtype: Any, name: str, mem_alloc_context: Any = None
) -> torch.Tensor:
    """Return a new tensor for each all-gather, as Transformer Engine's linear layers do."""
    return torch.empty(tensor_shape, dtype=dtype, device=META)


_FUSED = [
    Patch(
        target="megatron.core.transformer.mlp:bias_swiglu_impl",
        replacement=swiglu_by_shape,
        why="in a dry run, allocates several intermediates at once, because nothing compiles it to one kernel",
        remove_when="a dry run can name the accelerator's kernel without having it",
        signature="def bias_swiglu_impl(input, bias, fp8_input_store=False, cpu_offload_input=False)",
    ),
]
_NEW_GATHERS = [
    Patch(
        target="megatron.core.utils:GlobalMemoryBuffer.get_tensor",
        replacement=new_gather_buffer,
        why="in a dry run, keeps the rows that sequence parallelism gathered, which Transformer Engine's layers free",
        remove_when="a dry run can name the accelerator's linear layers without having them",
        signature="def get_tensor(self, tensor_shape, dtype, name, mem_alloc_context=None)",
    ),
]
_FUSED_ROTARY = [
    Patch(
        target="megatron.core.transformer.attention:apply_rotary_pos_emb",
        replacement=rotary_by_shape,
        why="in a dry run, keeps cosines and sines for each layer, which a fused kernel does not",
        remove_when="a dry run can name the accelerator's kernel without having it",
        signature="def apply_rotary_pos_emb(t, freqs, config, cu_seqlens=None, mscale=1.0, cp_group=None)",
    ),
]


def _tensor(make: Any) -> Any:
    """Wrap torch.tensor, which would read the values of tensors in a list."""

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
    """List the patches of a dry run with the layers of a platform."""
    from megatron_patches import cpu
    from megatron_patches.cpu.torch_view import TorchView

    view = TorchView(META)
    view.tensor = _tensor(view.tensor)  # type: ignore[attr-defined]
    own = [
        dataclasses.replace(patch, replacement=view, why=f"in a dry run, {patch.why}")
        if isinstance(patch.replacement, TorchView)
        else patch
        for patch in cpu.patches()
    ]
    return [
        *own,
        *(_FUSED if layer_memory.fused else []),
        *([] if layer_memory.gather_buffer else _NEW_GATHERS),
        *(_FUSED_ROTARY if layer_memory.fused_rotary else []),
    ]
