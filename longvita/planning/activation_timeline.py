"""Autograd in bytes: what a forward and a backward pass hold, operator by operator, without computing anything.

A model is written down as the operators it calls, each with the tensors it makes, those it keeps for its backward pass
and the scratch that it needs; the timeline then knows the bytes that live at every moment, and so the peak.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


class Storage:
    """Bytes of memory that tensors hold together; free when the last of them lets go."""

    __slots__ = ("holders", "kind", "size")

    def __init__(self, size: int, kind: str):
        self.size, self.kind, self.holders = size, kind, 0


class Tensor:
    """A tensor or a view: a storage, and whether gradients go back through it."""

    __slots__ = ("differentiable", "size", "storage")

    def __init__(self, storage: Storage, size: int, differentiable: bool):
        self.storage, self.size, self.differentiable = storage, size, differentiable


@dataclass(slots=True)
class Moment:
    """What lives at one moment of a step."""

    label: str
    size: int
    """Bytes."""


@dataclass(slots=True)
class _Node:
    """An operator that waits for its backward pass."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    kept: Sequence[Storage]
    kind: str
    label: str
    backward: Callable[[], None]


@dataclass
class ActivationTimeline:
    """Live bytes by kind, the history of their sum, and the operators to go back through."""

    live: Counter[str] = field(default_factory=Counter)
    """Bytes by kind."""
    now: int = 0
    peak: int = 0
    at_peak: Counter[str] = field(default_factory=Counter)
    """Bytes by kind when the peak was reached."""
    moments: list[Moment] = field(default_factory=list)
    made: int = 0
    """Bytes of all that was ever made: what the memory's bandwidth is asked for."""
    label: str = ""
    """What is being computed, for the history."""
    kind: str = ""
    """What new tensors count as."""
    gathered: int = 0
    """Bytes of the buffer that Megatron's linear layers gather rows into."""
    _nodes: list[_Node] = field(default_factory=list)
    _recording: bool = True
    _gradients: dict[int, Storage] = field(default_factory=dict)

    # Memory

    def hold(self, storage: Storage) -> Storage:
        """One more holder."""
        if not storage.holders:
            self.live[storage.kind] += storage.size
            self.now += storage.size
            self.made += storage.size
            self._look()
        storage.holders += 1
        return storage

    def release(self, storage: Storage) -> None:
        """One holder less."""
        storage.holders -= 1
        if not storage.holders:
            self.live[storage.kind] -= storage.size
            self.now -= storage.size
            self.moments.append(Moment(self.label, self.now))

    def _count_as(self, storage: Storage, kind: str) -> None:
        self.live[storage.kind] -= storage.size
        self.live[kind] += storage.size
        storage.kind = kind

    def scratch(self, size: int) -> None:
        """Memory that is taken and given back at once."""
        if size:
            self.release(self.hold(Storage(size, self.kind)))

    def gather_buffer(self, size: int) -> None:
        """Has the buffer for gathered rows, which stays, hold `size` bytes at least."""
        if size > self.gathered:
            self.hold(Storage(size - self.gathered, "communication"))
            self.gathered = size

    def _look(self) -> None:
        self.moments.append(Moment(self.label, self.now))
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, Counter(self.live)

    @contextlib.contextmanager
    def part(self, kind: str) -> Iterator[None]:
        """Tensors made inside, and by the backward pass of what is called inside, count as `kind`."""
        before, self.kind = self.kind, kind
        yield
        self.kind = before

    # Tensors

    def tensor(self, size: int, differentiable: bool = True) -> Tensor:
        """A new tensor, held by its maker."""
        return Tensor(self.hold(Storage(size, self.kind)), size, differentiable)

    def drop(self, *tensors: Tensor) -> None:
        """The maker, or the variable, lets go."""
        for tensor in tensors:
            self.release(tensor.storage)

    def operator(
        self,
        inputs: Sequence[Tensor],
        size: int,
        keeps: Sequence[Tensor] = (),
        keeps_output: bool = False,
        keeps_new: int = 0,
        scratch: int = 0,
        backward_scratch: int = 0,
        weight_gradient: int = 0,
        shares_gradient: bool = False,
        trained: bool = False,
        last: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Calls an operator, which makes a tensor of `size` bytes, and lets go of the tensors in `last`.

        keeps, keeps_output: what its backward pass reads. keeps_new: bytes that it makes for that alone. scratch,
        backward_scratch: taken while it runs. weight_gradient: bytes of its weights' gradients, which are added to the
        main gradients at once. shares_gradient: the inputs get the output's gradient itself. trained: whether it has
        weights with gradients. last: inputs that nobody holds afterwards; all of them when absent.
        """
        differentiable = trained or any(tensor.differentiable for tensor in inputs)
        made = self.tensor(size, differentiable)
        self.scratch(scratch)
        if differentiable and self._recording:
            kept = [self.hold(tensor.storage) for tensor in (*keeps, *([made] if keeps_output else []))]
            if keeps_new:
                kept.append(self.hold(Storage(keeps_new, self.kind)))
            node = _Node(inputs, [made], kept, self.kind, self.label, lambda: None)
            node.backward = lambda: self._back(node, backward_scratch, weight_gradient, shares_gradient)
            self._nodes.append(node)
        elif keeps_new:
            self.scratch(keeps_new)
        self.drop(*(inputs if last is None else last))
        return made

    def views(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Parts of a tensor, in its memory; their gradients are joined in a new one. The whole is let go."""
        parts = [Tensor(self.hold(tensor.storage), size, tensor.differentiable) for size in sizes]
        if tensor.differentiable and self._recording:
            node = _Node([tensor], parts, [], self.kind, self.label, lambda: None)
            node.backward = lambda: self._back(node, 0, 0, False)
            self._nodes.append(node)
        self.drop(tensor)
        return parts

    def loss(self, rows: Tensor, weight_gradient: int, scratch: int, cast: int) -> Tensor:
        """A loss of `rows` whose gradients are made in the forward pass and handed over in the backward pass.

        weight_gradient: bytes of the weight's. cast: bytes of a copy of it in the weight's own precision.
        """
        made = self.tensor(4)
        own = [self.hold(Storage(size, self.kind)) for size in (rows.size, weight_gradient)]
        self.scratch(scratch)
        if self._recording:
            node = _Node([rows], [made], own, self.kind, self.label, lambda: None)
            node.backward = lambda: self._back_from_loss(node, cast)
            self._nodes.append(node)
        self.drop(rows)
        return made

    def _back_from_loss(self, node: _Node, cast: int) -> None:
        self.release(self._gradients.pop(id(node.outputs[0])))
        self._hand_back(node.inputs[0], node.kept[0])
        self.scratch(cast)
        for storage in node.kept:
            self.release(storage)

    # Backward pass

    def _back(self, node: _Node, scratch: int, weight_gradient: int, shares_gradient: bool) -> None:
        incoming = [self._gradients.pop(id(tensor)) for tensor in node.outputs if id(tensor) in self._gradients]
        weights = self.hold(Storage(weight_gradient, node.kind)) if weight_gradient else None
        for tensor in node.inputs:
            if tensor.differentiable:
                self._hand_back(tensor, incoming[0] if shares_gradient else Storage(tensor.size, node.kind))
        self.scratch(scratch)
        for storage in (*([weights] if weights else []), *incoming, *node.kept):
            self.release(storage)

    def _hand_back(self, tensor: Tensor, gradient: Storage) -> None:
        """Gives a tensor its gradient; a second one is added to the first in place, as autograd does."""
        self.hold(gradient)
        if id(tensor) in self._gradients:
            self.release(gradient)
        else:
            self._gradients[id(tensor)] = gradient

    def backward(self, output: Tensor) -> None:
        """The backward pass from `output`, whose gradient is made here."""
        self._hand_back(output, Storage(output.size, self.kind))
        self._run_back()

    def _run_back(self, down_to: int = 0) -> None:
        while len(self._nodes) > down_to:
            node = self._nodes.pop()
            self.kind, self.label = node.kind, node.label
            node.backward()

    def take_gradient(self, tensor: Tensor) -> None:
        """Lets go of the gradient of a tensor that no operator made, if it has one."""
        if id(tensor) in self._gradients:
            self.release(self._gradients.pop(id(tensor)))

    # Recomputation

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Nothing called inside is kept for a backward pass."""
        before, self._recording = self._recording, False
        yield
        self._recording = before

    def checkpoint(
        self, function: Callable[[Tensor], Tensor], source: Tensor, trained: bool = True, away: bool = False
    ) -> Tensor:
        """`function` of `source`, which alone is kept; the backward pass calls it again.

        away: what is kept leaves the memory and comes back for the backward pass, the one before it on its way then.
        """
        if not self._recording or not (source.differentiable or trained):
            return function(source)
        kept = self.hold(source.storage)
        self._count_as(kept, self.kind)
        with self.without_gradients():
            made = function(source)
        output = Tensor(made.storage, made.size, True)
        if away:
            self.release(kept)
        node = _Node([source], [output], [kept], self.kind, self.label, lambda: None)
        node.backward = lambda: self._recompute(node, function, away)
        self._nodes.append(node)
        return output

    def _recompute(self, node: _Node, function: Callable[[Tensor], Tensor], away: bool) -> None:
        (source,), (output,) = node.inputs, node.outputs
        gradient = self._gradients.pop(id(output))
        held = [self.hold(Storage(source.size, node.kind)) for _ in range(2)] if away else list(node.kept)
        again = Tensor(self.hold(held[0]), source.size, True)
        start = len(self._nodes)
        made = function(again)
        self._gradients[id(made)] = self.hold(gradient)
        self._run_back(start)
        self.drop(made)
        if id(again) in self._gradients:
            found = self._gradients.pop(id(again))
            if source.differentiable:
                self._hand_back(source, found)
            self.release(found)
        for storage in (gradient, *held):
            self.release(storage)
