"""A tensor of a device put away in page-locked memory of its host, on a queue of its own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from longvita.platforms.base import PlatformError


class HostCopy:
    """See longvita.platforms.base.Offloaded.

    api: the device's module of torch, with Stream, stream and current_stream. Copies go through one queue in the order
    of the calls, while the device computes. pinned: whether the host's memory is page-locked, which copies need that
    the device does not wait for.
    """

    def __init__(self, tensor: Tensor, api: Any, pinned: bool = True):
        self._api, self._device = api, tensor.device
        self._back: Tensor | None = None
        queue = _queue(api)
        try:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        except RuntimeError as error:
            raise PlatformError(
                f"the host has no room for {tensor.numel() * tensor.element_size()} bytes of layer inputs: {error}; "
                "set training.recompute.offload to false, or run fewer processes on this machine"
            ) from error
        queue.wait_stream(api.current_stream())
        with api.stream(queue):
            self._host.copy_(tensor, non_blocking=True)
        if pinned:
            tensor.record_stream(queue)  # else its memory is used again before it is copied

    def start(self) -> None:
        """See Offloaded."""
        if self._back is None:
            with self._api.stream(_queue(self._api)):
                self._back = self._host.to(self._device, non_blocking=True)

    def fetch(self) -> Tensor:
        """See Offloaded."""
        self.start()
        back, self._back = self._back, None
        if back is None:
            raise RuntimeError("nothing is being brought back")
        current = self._api.current_stream()
        current.wait_stream(_queue(self._api))
        if self._host.is_pinned():
            back.record_stream(current)
        return back


@functools.cache
def _queue(api: Any) -> Any:
    """One for the process."""
    return api.Stream()
