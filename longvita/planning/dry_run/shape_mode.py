"""Run a step by shape: large tensors on the meta device, small real ones on the host.

Tensors that decide shapes (token ids, labels, document bounds, the target of each row) have values and are on the host;
weights, activations and gradients have shapes and no values. Where an operator gets both, only the shapes of the host's
tensors count. A value that the host reads (a loss, a gradient norm) is 1.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch.utils._pytree import tree_map

from longvita.parallel.groups import ParallelGroups
from longvita.planning.dry_run.collectives import CollectiveRecorder, storage_key, tensors_in

MAX_COPIED_TO_HOST = 1 << 20
"""Elements that an operator may copy from the device to the host; more would be activations."""
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
aten = torch.ops.aten


class ShapeMode(CollectiveRecorder):
    """While entered, run operators by shape, record collectives, and count the live bytes on the meta device.

    Tensors that exist before it is entered do not count.
    """

    def __init__(self, groups: ParallelGroups):
        super().__init__(groups)
        self.live = self.peak = 0
        """Bytes of the storages made since it was entered: those of now, and the most before the optimizer's step."""
        self._storages: dict[int, tuple[Any, int]] = {}

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.namespace == "c10d":
            return _finished_collective(func, args)
        leaves = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        on_meta = any(leaf.is_meta for leaf in leaves)
        if on_meta:
            for leaf in leaves:
                if leaf.is_meta:
                    self._count(leaf, 0)
            special = _special(func, args, kwargs)
            if special is not None:
                return special[0]
            if func in _INDEXED:
                args = (args[0], _numbers(args[1]), *args[2:])
            if any(not leaf.is_meta for leaf in leaves):
                args, kwargs = tree_map(_shape_of, (args, kwargs))
        out = func(*args, **kwargs)
        for leaf in tensors_in(out):
            if leaf.is_meta:
                self._count(leaf, leaf.untyped_storage().nbytes())
        return out

    def _count(self, tensor: Tensor, size: int) -> None:
        """Count a tensor's storage, if it is new, until it is freed."""
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._storages:
            return
        self._storages[key] = weakref.ref(storage, lambda _: self._free(key)), size
        self.live += size
        if not self.in_optimizer:
            self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        self.live -= self._storages.pop(key)[1]


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_meta:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def _numbers(indices: Any) -> list:
    """Replace masks on the host by the positions that they select, which a mask on the meta device would not show."""
    found: list[Any] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not index.is_meta:
            found += list(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found


def _special(func: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
    """Return the result of an operator that reads values or writes to the host, in a tuple of one; None for others."""
    if func is aten._local_scalar_dense.default:
        return (torch.ones((), dtype=args[0].dtype).item(),)
    if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
        if args[0].numel() > MAX_COPIED_TO_HOST:
            raise RuntimeError(f"{tuple(args[0].shape)} values are copied to the host, which a training step must not")
        return (torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype),)
    if func is aten.bincount.default:
        # All callers pass a positive minlength above every value that they count.
        size = args[2] if len(args) > 2 else kwargs["minlength"]
        return (torch.empty(size, dtype=torch.int64, device="meta"),)
    if func in (aten.index_put_.default, aten.index_put.default) and any(i is not None and i.is_meta for i in args[1]):
        return (args[0] if func is aten.index_put_.default else torch.empty_like(args[0]),)
    target = args[0]
    if func._schema.is_mutable and isinstance(target, Tensor) and not target.is_meta:
        return (target,)
    return None


def _finished_collective(func: Any, args: Any) -> Any:
    """Return what a collective does: its unchanged outputs, and finished work."""
    work = FakeWork().boxed()
    return work if len(func._schema.returns) == 1 else (args[0], work)
