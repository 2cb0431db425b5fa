"""Layer inputs offloaded between forward and backward pass.

With full recomputation a layer keeps only its input. These autograd hooks offload each input once the layer has run,
and fetch the previous layer's input while a layer is recomputed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from longvita.platforms.base import OffloadedTensor


class _Input:
    """One layer's offloaded input, and the previous layer's, which the backward pass needs next."""

    def __init__(self, offloaded: OffloadedTensor, previous: _Input | None):
        self.offloaded, self.previous = offloaded, previous


@contextlib.contextmanager
def offloaded_inputs(offload: Callable[[Tensor], OffloadedTensor], hidden_size: int) -> Iterator[None]:
    """Offload every hidden state [t, b, h] that autograd saves inside the block."""
    last: _Input | None = None

    def pack(tensor: Tensor) -> Tensor | _Input:
        nonlocal last
        is_hidden_state = tensor.dim() == 3 and tensor.shape[-1] == hidden_size and not isinstance(tensor, nn.Parameter)
        if not is_hidden_state:
            return tensor
        last = _Input(offload(tensor), last)
        return last

    def unpack(kept: Tensor | _Input) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        tensor, previous = kept.offloaded.fetch(), kept.previous
        if previous is not None:
            previous.offloaded.start()
            kept.previous = None
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
