"""Record every collective call and message of a process.

The calls of torch.distributed, of megatron-core and of autograd's backward passes all become operators c10d::..., which
a dispatch mode receives with their tensors and their group, for real groups and for fake ones.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longvita.parallel.groups import ParallelGroups
from longvita.planning.dry_run.rank_counts import Collective

KINDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "recv": "receive",
    "monitored_barrier": "barrier",
}
"""Kind of collective by the first words of its operator in c10d; the others have the operator's own name."""
_OUTPUT_IS_FIRST = ("_allgather_base_", "_reduce_scatter_base_", "alltoall_base_", "allgather_", "reduce_scatter_")
"""Operators whose first argument is the output, and the second the input."""
WORLD = "world"
_MESSAGES = ("send", "receive")


def group_names(groups: ParallelGroups) -> dict[str, str]:
    """Map the names that torch.distributed has for a layout's groups to readable ones."""
    # Groups of one axis come last: one group may play several parts, and then gets the simplest name.
    named = {
        WORLD: dist.group.WORLD,
        "TP x PP": groups.language.mp,
        "TP x CP": groups.tp_cp,
        "DP x CP": groups.dp_cp,
        "first and last stage": groups.language.embd,
        "CP (ring)": groups.cp_ring,
        "CP (Ulysses)": groups.cp_ulysses,
        "PP": groups.pp,
        "DP": groups.dp,
        "CP": groups.cp,
        "TP": groups.tp,
    }
    return {group.group_name: name for name, group in named.items() if isinstance(group, dist.ProcessGroup)}


class CollectiveRecorder(TorchDispatchMode):
    """While entered, count this process's collective calls; the calls themselves do not change.

    in_forward, in_optimizer: where the step is; set by `track_phases`.
    """

    def __init__(self, groups: ParallelGroups):
        super().__init__()
        self.counts: Counter[Collective] = Counter()
        self.in_forward = self.in_optimizer = False
        self._names = group_names(groups)
        self._stage_count = groups.pp_size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record an operator of c10d, then run it."""
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self._record(func, args)
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _record(self, func: Any, args: Any) -> None:
        name = func._schema.name.removeprefix("c10d::")
        own = name.strip("_")
        kind = next((kind for words, kind in KINDS.items() if own.startswith(words)), own)
        group = _group_of(args)
        if group is None or group.size() == 1 or kind == "barrier":
            return
        moved = args[1] if name in _OUTPUT_IS_FIRST else args[0]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(moved))
        label = self._names.get(group.group_name) or group.group_desc.removesuffix("_GROUP").lower().replace("_", " ")
        width = group.size()
        if kind in _MESSAGES and label == WORLD:
            # With two stages Megatron receives in the default group, so that both can send at the same time.
            label, width = "PP", self._stage_count
        self.counts[Collective(self._phase(kind, label), kind, label, width, size)] += 1

    def _phase(self, kind: str, label: str) -> str:
        if kind in _MESSAGES and label == "PP":
            return "pipeline"
        if self.in_optimizer:
            return "optimizer"
        if label == WORLD:
            return "step"
        if label == "DP x CP":
            # With overlap, Megatron's reductions start during the last backward pass.
            return "gradients"
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        return "forward" if self.in_forward else "gradients"


@contextlib.contextmanager
def track_phases(recorder: CollectiveRecorder, state: Any) -> Iterator[None]:
    """Set the recorder's phase while a training state's chunks run forward and while its optimizer steps."""

    def enter(*unused: Any) -> None:
        recorder.in_forward = True

    def leave(*unused: Any) -> None:
        recorder.in_forward = False

    hooks = [chunk.register_forward_pre_hook(enter) for chunk in state.chunks]
    hooks += [chunk.register_forward_hook(leave) for chunk in state.chunks]
    step = state.optimizer.step

    def counted_step() -> Any:
        recorder.in_optimizer = True
        try:
            return step()
        finally:
            recorder.in_optimizer = False

    state.optimizer.step = counted_step
    try:
        yield
    finally:
        state.optimizer.step = step
        for hook in hooks:
            hook.remove()


def _group_of(args: Any) -> dist.ProcessGroup | None:
    for argument in args:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            return dist.ProcessGroup.unbox(argument)
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results, including those in lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def storage_key(tensor: Tensor) -> int:
    """Return a key that is unique to a tensor's storage while it exists; tensors on the meta device have no address."""
    return tensor.untyped_storage()._cdata
