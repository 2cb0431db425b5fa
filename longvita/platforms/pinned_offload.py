"""Layer inputs of an accelerator offloaded to the host's pinned memory, copied while the device computes."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

from longvita.platforms.base import OffloadedTensor, PlatformError


class PinnedStore:
    """Copies tensors out and back on a stream of its own, in the order of the calls.

    api: the device's module in torch, with Stream, stream and current_stream. pinned: whether the host memory is
    page-locked; if it is not, the device waits for the copies.
    """

    def __init__(self, api: Any, pinned: bool = True) -> None:
        self.api, self.pinned, self.stream = api, pinned, api.Stream()

    def put(self, tensor: Tensor) -> PinnedTensor:
        """Start to copy a tensor out. Raises PlatformError if the host has no pinned memory left for it."""
        source = tensor.detach()
        try:
            host = torch.empty(source.shape, dtype=source.dtype, pin_memory=self.pinned)
        except RuntimeError as error:
            raise PlatformError(
                f"training.recompute.offload: cannot allocate {source.nbytes} bytes of pinned memory on the host "
                f"({error}); fix: fewer processes per machine, shorter sequences, or offload=false"
            ) from error
        self.stream.wait_stream(self.api.current_stream())
        with self.api.stream(self.stream):
            host.copy_(source, non_blocking=True)
        if self.pinned:
            # The allocator must not reuse the memory before the copy is complete.
            source.record_stream(self.stream)
        return PinnedTensor(self, host, source.device)


pinned_store = functools.cache(PinnedStore)
"""The one store of this process for a device's module."""


class PinnedTensor(OffloadedTensor):
    """A tensor in the host's memory."""

    def __init__(self, store: PinnedStore, host: Tensor, device: torch.device) -> None:
        self._store, self._host, self._device = store, host, device
        self._back: Tensor | None = None

    @override
    def start(self) -> None:
        if self._back is None:
            with self._store.api.stream(self._store.stream):
                self._back = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
                self._back.copy_(self._host, non_blocking=True)

    @override
    def fetch(self) -> Tensor:
        """Return the tensor on the device. Its next user waits for the copy on the device; the caller does not wait."""
        self.start()
        back, current = cast(Tensor, self._back), self._store.api.current_stream()
        current.wait_stream(self._store.stream)
        if self._store.pinned:
            back.record_stream(current)
        return back
