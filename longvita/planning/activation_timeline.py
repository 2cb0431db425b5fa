"""Autograd in bytes: what a forward and a backward pass hold in memory, operator by operator, without computing.

A model is described by the operators that it calls: the tensors that each makes, those that it keeps for its backward
pass, and its scratch memory. The timeline then has the bytes that are live at every moment, and so the peak.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


class PlannedStorage:
    """Bytes of memory with a number of holders; free when there is none."""

    __slots__ = ("holders", "kind", "size")

    def __init__(self, size: int, kind: str):
        self.size, self.kind, self.holders = size, kind, 0


class PlannedTensor:
    """A tensor or a view: a storage, and whether gradients pass through it."""

    __slots__ = ("differentiable", "size", "storage")

    def __init__(self, storage: PlannedStorage, size: int, differentiable: bool):
        self.storage, self.size, self.differentiable = storage, size, differentiable


Layers = Callable[[PlannedTensor], PlannedTensor]
"""Operators that release a hidden state and return the next one."""


@dataclass(slots=True)
class Moment:
    """Memory at one moment of a step."""

    label: str
    """The layer or other part that is being computed."""
    size: int
    """Live bytes."""


@dataclass(slots=True)
class _OperatorNode:
    """An operator whose backward pass is still to come."""

    inputs: Sequence[PlannedTensor]
    outputs: Sequence[PlannedTensor]
    kept: Sequence[PlannedStorage]
    kind: str
    label: str
    backward: Callable[[_OperatorNode], None]


@dataclass
class ActivationTimeline:
    """Live bytes by kind, the history of their sum, and the operators whose backward pass is still to come."""

    live: Counter[str] = field(default_factory=Counter)
    """Bytes by kind."""
    now: int = 0
    peak: int = 0
    at_peak: Counter[str] = field(default_factory=Counter)
    """Bytes by kind when the peak was reached."""
    moments: list[Moment] = field(default_factory=list)
    allocated: int = 0
    """Bytes of all tensors that were ever made, and of all gathers into the buffer; the traffic to the memory follows
    from it."""
    label: str = ""
    """Label of the moments to come."""
    kind: str = ""
    """Kind of the tensors to come."""
    gathered: int = 0
    """Bytes of the buffer that Megatron's linear layers gather rows into."""
    _nodes: list[_OperatorNode] = field(default_factory=list)
    _recording: bool = True
    _gradients: dict[int, PlannedStorage] = field(default_factory=dict)

    # Memory

    def hold(self, storage: PlannedStorage) -> PlannedStorage:
        """Add a holder; the first one allocates the storage."""
        if not storage.holders:
            self.live[storage.kind] += storage.size
            self.now += storage.size
            self.allocated += storage.size
            self.moments.append(Moment(self.label, self.now))
            if self.now > self.peak:
                self.peak, self.at_peak = self.now, Counter(self.live)
        storage.holders += 1
        return storage

    def release(self, storage: PlannedStorage) -> None:
        """Remove a holder; the last one frees the storage."""
        storage.holders -= 1
        if not storage.holders:
            self.live[storage.kind] -= storage.size
            self.now -= storage.size
            self.moments.append(Moment(self.label, self.now))

    def scratch(self, size: int) -> None:
        """Allocate memory and free it at once."""
        if size:
            self.release(self.hold(PlannedStorage(size, self.kind)))

    def gather_buffer(self, size: int) -> None:
        """Gather rows of `size` bytes into the permanent buffer, which grows to that size."""
        self.allocated += min(size, self.gathered)
        if size > self.gathered:
            self.hold(PlannedStorage(size - self.gathered, "communication"))
            self.gathered = size

    @contextlib.contextmanager
    def part(self, kind: str) -> Iterator[None]:
        """Count tensors made inside, and in the backward pass of operators called inside, as `kind`."""
        before, self.kind = self.kind, kind
        yield
        self.kind = before

    # Tensors

    def tensor(self, size: int, differentiable: bool = True) -> PlannedTensor:
        """Make a tensor, held by the caller."""
        return PlannedTensor(self.hold(PlannedStorage(size, self.kind)), size, differentiable)

    def drop(self, *tensors: PlannedTensor) -> None:
        """Release tensors that the caller holds."""
        for tensor in tensors:
            self.release(tensor.storage)

    def operator(
        self,
        inputs: Sequence[PlannedTensor],
        size: int,
        keeps: Sequence[PlannedTensor] = (),
        keeps_output: bool = False,
        keeps_new: int = 0,
        scratch: int = 0,
        backward_scratch: int = 0,
        gathers: int = 0,
        weight_gradient: int = 0,
        passes_gradient: bool = False,
        trained: bool = False,
        drops: Sequence[PlannedTensor] | None = None,
    ) -> PlannedTensor:
        """Call an operator that makes a tensor of `size` bytes, then release the tensors in `drops`.

        keeps, keeps_output: tensors that its backward pass reads. keeps_new: bytes that it makes only for its backward
        pass. scratch, backward_scratch: bytes in use while it runs. gathers: bytes that each pass gathers into the
        buffer. weight_gradient: bytes of its weights' gradients, which are added to the main gradients at once.
        passes_gradient: the inputs get the output's gradient itself. trained: whether it has weights with gradients.
        drops: inputs without another use; all when absent.
        """
        differentiable = trained or any(tensor.differentiable for tensor in inputs)
        self.gather_buffer(gathers)
        made = self.tensor(size, differentiable)
        self.scratch(scratch)
        if differentiable and self._recording:
            kept = [self.hold(tensor.storage) for tensor in (*keeps, *([made] if keeps_output else []))]
            if keeps_new:
                kept.append(self.hold(PlannedStorage(keeps_new, self.kind)))
            self._record(
                inputs,
                [made],
                kept,
                lambda node: self._back(node, backward_scratch, gathers, weight_gradient, passes_gradient),
            )
        elif keeps_new:
            self.scratch(keeps_new)
        self.drop(*(inputs if drops is None else drops))
        return made

    def linear(
        self, x: PlannedTensor, size: int, weight: int, trained: bool, copy: int = 0, **options: Any
    ) -> PlannedTensor:
        """Call a linear layer that makes `size` bytes; options: those of `operator`.

        A trained one keeps its input, or `copy` bytes instead, for the gradient of its weight of `weight` bytes.
        """
        if trained:
            options |= {"keeps_new": copy} if copy else {"keeps": [x]}
        return self.operator([x], size, weight_gradient=weight if trained else 0, trained=trained, **options)

    def views(self, tensor: PlannedTensor, sizes: Sequence[int]) -> list[PlannedTensor]:
        """Split a tensor into views, which replace it; their gradients are joined in a new tensor."""
        parts = [PlannedTensor(self.hold(tensor.storage), size, tensor.differentiable) for size in sizes]
        if tensor.differentiable and self._recording:
            self._record([tensor], parts, [], self._back)
        self.drop(tensor)
        return parts

    def loss(self, rows: PlannedTensor, weight_gradient: int, scratch: int, cast: int) -> PlannedTensor:
        """Compute a loss of `rows` whose gradients are computed in the forward pass and used in the backward pass.

        weight_gradient: bytes of the output weight's gradient. cast: bytes of a copy of it in the weight's precision.
        """
        made = self.tensor(4)
        own = [self.hold(PlannedStorage(size, self.kind)) for size in (rows.size, weight_gradient)]
        self.scratch(scratch)
        if self._recording:
            self._record([rows], [made], own, lambda node: self._back_from_loss(node, cast))
        self.drop(rows)
        return made

    def _record(
        self,
        inputs: Sequence[PlannedTensor],
        outputs: Sequence[PlannedTensor],
        kept: Sequence[PlannedStorage],
        backward: Callable[[_OperatorNode], None],
    ) -> None:
        self._nodes.append(_OperatorNode(inputs, outputs, kept, self.kind, self.label, backward))

    # Backward pass

    def _back(
        self,
        node: _OperatorNode,
        scratch: int = 0,
        gathers: int = 0,
        weight_gradient: int = 0,
        passes_gradient: bool = False,
    ) -> None:
        self.gather_buffer(gathers)
        incoming = [self._gradients.pop(id(tensor)) for tensor in node.outputs if id(tensor) in self._gradients]
        weights = [self.hold(PlannedStorage(weight_gradient, node.kind))] if weight_gradient else []
        for tensor in node.inputs:
            if tensor.differentiable:
                self._add_gradient(tensor, incoming[0] if passes_gradient else PlannedStorage(tensor.size, node.kind))
        self.scratch(scratch)
        for storage in (*weights, *incoming, *node.kept):
            self.release(storage)

    def _back_from_loss(self, node: _OperatorNode, cast: int) -> None:
        self.release(self._gradients.pop(id(node.outputs[0])))
        self._add_gradient(node.inputs[0], node.kept[0])
        self.scratch(cast)
        for storage in node.kept:
            self.release(storage)

    def _add_gradient(self, tensor: PlannedTensor, gradient: PlannedStorage) -> None:
        """Give a tensor its gradient; a second one is added to the first in place, as in autograd."""
        self.hold(gradient)
        if id(tensor) in self._gradients:
            self.release(gradient)
        else:
            self._gradients[id(tensor)] = gradient

    def backward(self, output: PlannedTensor) -> None:
        """Run the backward pass from `output`, whose gradient is made here."""
        self._add_gradient(output, PlannedStorage(output.size, self.kind))
        self._run_back()

    def _run_back(self, down_to: int = 0) -> None:
        while len(self._nodes) > down_to:
            node = self._nodes.pop()
            self.kind, self.label = node.kind, node.label
            node.backward(node)

    def take_gradient(self, tensor: PlannedTensor) -> None:
        """Release the gradient of a tensor that no operator made, if it has one."""
        if id(tensor) in self._gradients:
            self.release(self._gradients.pop(id(tensor)))

    # Recomputation

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Keep nothing for a backward pass inside."""
        before, self._recording = self._recording, False
        yield
        self._recording = before

    def checkpoint(self, function: Layers, source: PlannedTensor, offload: bool = False) -> PlannedTensor:
        """Call `function` on `source` and keep only `source`; the backward pass calls `function` again.

        offload: `source` is freed, and copied back for the backward pass; that of the function before is then already
        being copied back too.
        """
        if not self._recording:
            return function(source)
        kept = self.hold(source.storage)
        self.live[kept.kind] -= kept.size
        self.live[self.kind] += kept.size
        kept.kind = self.kind
        with self.without_gradients():
            made = function(source)
        output = PlannedTensor(made.storage, made.size, True)
        if offload:
            self.release(kept)
        self._record([source], [output], [kept], lambda node: self._recompute(node, function, offload))
        return output

    def _recompute(self, node: _OperatorNode, function: Layers, offload: bool) -> None:
        (source,), (output,) = node.inputs, node.outputs
        gradient = self._gradients.pop(id(output))
        held = [self.hold(PlannedStorage(source.size, node.kind)) for _ in range(2)] if offload else list(node.kept)
        again = PlannedTensor(self.hold(held[0]), source.size, True)
        start = len(self._nodes)
        made = function(again)
        self._gradients[id(made)] = self.hold(gradient)
        self._run_back(start)
        self.drop(made)
        if id(again) in self._gradients:
            found = self._gradients.pop(id(again))
            if source.differentiable:
                self._add_gradient(source, found)
            self.release(found)
        for storage in (gradient, *held):
            self.release(storage)
