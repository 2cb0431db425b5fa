"""Layer inputs of the CPU platform offloaded to a file: host memory is the device's memory, so they go to disk."""

from __future__ import annotations

import functools
import os
import tempfile
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

from longvita.platforms.base import OffloadedTensor, PlatformError


class OffloadFile:
    """An unnamed file in the folder for temporary files (TMPDIR), written and read by one thread in the order of the
    calls while the process computes. Space in it is reused by tensors of the same size. If that folder is in memory
    (tmpfs), offloading saves nothing.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="longvita-", buffering=0)  # noqa: SIM115 - open with the process
        except OSError as error:
            raise _no_room(error) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk_offload")
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._last: Future[None] | None = None

    def put(self, tensor: Tensor) -> DiskTensor:
        """Start to write a tensor. Waits for the previous one, so that at most one waits in memory to be written."""
        if self._last is not None:
            _result(self._last)
        flat = tensor.detach().contiguous()
        size = flat.numel() * flat.element_size()
        if self._free[size]:
            offset = self._free[size].pop()
        else:
            offset = self._end
            self._end += size
        self._last = self._thread.submit(self._write, flat, offset)
        return DiskTensor(self, self._last, flat, offset)

    def read(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> Future[Tensor]:
        """Start to read a tensor."""
        return self._thread.submit(self._read, offset, shape, dtype)

    def release(self, offset: int, size: int) -> None:
        """Free the space for later tensors of this size. Reads requested before still precede their writes."""
        self._free[size].append(offset)

    def _write(self, tensor: Tensor, offset: int) -> None:
        data = _bytes(tensor)
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def _read(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        data = _bytes(tensor)
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            if not count:
                raise OSError("the offload file is shorter than the data that was written to it")
            data, offset = data[count:], offset + count
        return tensor


offload_file = functools.cache(OffloadFile)
"""The one file of this process."""


class DiskTensor(OffloadedTensor):
    """A tensor in an OffloadFile."""

    def __init__(self, file: OffloadFile, writing: Future[None], tensor: Tensor, offset: int):
        self._file, self._writing, self._offset = file, writing, offset
        self._shape, self._dtype = tensor.shape, tensor.dtype
        self._size = tensor.numel() * tensor.element_size()
        self._reading: Future[Tensor] | None = None

    @override
    def start(self) -> None:
        if self._reading is None:
            self._reading = self._file.read(self._offset, self._shape, self._dtype)

    @override
    def fetch(self) -> Tensor:
        self.start()
        _result(self._writing)
        reading, self._reading = cast("Future[Tensor]", self._reading), None
        return _result(reading)

    def __del__(self) -> None:
        self._file.release(self._offset, self._size)


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> PlatformError:
    return PlatformError(
        f"layer inputs cannot be offloaded to a file in TMPDIR: {error}; fix: set TMPDIR to a folder with more room, "
        "or training.recompute.offload to false"
    )


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
