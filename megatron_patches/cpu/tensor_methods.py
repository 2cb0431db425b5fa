"""Methods of torch.Tensor that megatron-core calls as if every tensor were on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patches.patch import Patch

_tensor_type = torch.Tensor.type


class TypeName(str):
    """A CPU tensor's type name that also equals the accelerator's: torch.FloatTensor == torch.cuda.FloatTensor."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) or str.__eq__(self.replace("torch.", "torch.cuda.", 1), other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def tensor_cuda(
    self: torch.Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
) -> torch.Tensor:
    """Return the tensor itself, which is on its device already."""
    return self


def tensor_type(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    """Return the type's name (`TypeName`) without dtype, otherwise the tensor converted to dtype."""
    result = _tensor_type(self, dtype, non_blocking, **kwargs)
    # In a dry run tensors are "torch.meta.FloatTensor".
    return TypeName(result.replace("torch.meta.", "torch.")) if isinstance(result, str) else result


PATCHES = [
    Patch(
        target="torch:Tensor.cuda",
        replacement=tensor_cuda,
        why="tied embeddings, broadcast_data and resharded loads call .cuda() on tensors",
        versions="torch>=2.7",
        remove_when="megatron-core moves tensors with .to(device)",
        signature="cuda(device=None, non_blocking=False, memory_format=torch.preserve_format) -> Tensor",
    ),
    Patch(
        target="torch:Tensor.type",
        replacement=tensor_type,
        why="the optimizers sort parameters by the name 'torch.cuda.FloatTensor' and refuse any other",
        versions="torch>=2.7",
        remove_when="megatron-core's optimizers use dtype instead of type()",
        signature="type(dtype=None, non_blocking=False, **kwargs) -> str or Tensor",
    ),
]
