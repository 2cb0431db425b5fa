"""Layer inputs put away between forward and backward pass.

With full recomputation a layer keeps nothing but its input. These hooks of autograd hand each of them to the platform
as soon as the layer has run, and bring the one before back while a layer is computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from longvita.platforms.base import OffloadedTensor


class _Input:
    """One layer's input, and the one that the backward pass wants next."""

    def __init__(self, away: OffloadedTensor, before: _Input | None):
        self.away, self.before = away, before


@contextlib.contextmanager
def offloaded_inputs(offload: Callable[[Tensor], OffloadedTensor], hidden_size: int) -> Iterator[None]:
    """Hands every hidden state [t, b, h] that autograd keeps of what runs inside to `offload`."""
    last: _Input | None = None

    def put_away(tensor: Tensor) -> Tensor | _Input:
        nonlocal last
        is_hidden_state = tensor.dim() == 3 and tensor.shape[-1] == hidden_size and not isinstance(tensor, nn.Parameter)
        if not is_hidden_state:
            return tensor
        last = _Input(offload(tensor), last)
        return last

    def bring_back(kept: Tensor | _Input) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        tensor, before = kept.away.fetch(), kept.before
        if before is not None:
            before.away.start()
            kept.before = None
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(put_away, bring_back):
        yield
