"""Tensors of an accelerator put away in the host's pinned memory, copied beside what the device computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longvita.platforms.base import PlatformError


class PinnedStore:
    """Copies out and back on a stream of its own, in the order of the calls.

    api: the device's module of torch, with Stream, stream and current_stream. pinned: whether the host's memory is
    page-locked, without which the device waits for the copies.
    """

    def __init__(self, api: Any, pinned: bool = True) -> None:
        self.api, self.pinned, self.stream = api, pinned, api.Stream()

    def put(self, tensor: Tensor) -> Pinned:
        """Begins to copy a tensor out. Raises PlatformError if the host has no pinned memory left for it."""
        source = tensor.detach()
        try:
            host = torch.empty(source.shape, dtype=source.dtype, pin_memory=self.pinned)
        except RuntimeError as error:
            raise PlatformError(
                f"training.recompute.offload: no {source.nbytes} bytes of pinned memory on the host ({error}); "
                "fewer processes a machine, shorter sequences, or offload=false"
            ) from error
        self.stream.wait_stream(self.api.current_stream())
        with self.api.stream(self.stream):
            host.copy_(source, non_blocking=True)
        if self.pinned:
            # The allocator shall not hand the memory out before the copy has been made.
            source.record_stream(self.stream)
        return Pinned(self, host, source.device)


class Pinned:
    """A tensor in the host's memory; see longvita.platforms.base.Offloaded."""

    def __init__(self, store: PinnedStore, host: Tensor, device: torch.device) -> None:
        self._store, self._host, self._device = store, host, device
        self._back: Tensor | None = None

    def start(self) -> None:
        """Begins to copy it back."""
        if self._back is None:
            with self._store.api.stream(self._store.stream):
                self._back = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
                self._back.copy_(self._host, non_blocking=True)

    def fetch(self) -> Tensor:
        """The tensor on the device; what uses it next waits for the copy, the caller does not."""
        self.start()
        back, current = self._back, self._store.api.current_stream()
        if back is None:
            raise RuntimeError("nothing was started")
        current.wait_stream(self._store.stream)
        if self._store.pinned:
            back.record_stream(current)
        return back
