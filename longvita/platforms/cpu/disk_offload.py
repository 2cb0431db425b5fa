"""Tensors of the CPU put away in a file: its memory is the device's, so what leaves it goes to disk."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from longvita.platforms.base import PlatformError

_T = TypeVar("_T")


class SpillFile:
    """A file without a name in the folder for temporary files (TMPDIR), written and read by one thread in the order of
    the calls, while the process computes. Places are used again by tensors of the same size. Where that folder lies in
    memory (tmpfs), nothing is won.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="longvita-", buffering=0)  # noqa: SIM115 - open with the process
        except OSError as error:
            raise _no_room(error) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spill")
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._last: Future[None] | None = None

    def put(self, tensor: Tensor) -> Spilled:
        """Begins to write a tensor, and waits for the one before it: at most one is in memory for being written."""
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
        return Spilled(self, self._last, flat, offset)

    def read(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> Future[Tensor]:
        """Begins to read a tensor."""
        return self._thread.submit(self._read, offset, shape, dtype)

    def release(self, offset: int, size: int) -> None:
        """Has later tensors of this size take the place; what was asked for before is still done before."""
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
                raise OSError("the file for what was put away is shorter than what was written")
            data, offset = data[count:], offset + count
        return tensor


class Spilled:
    """A tensor in the file; its place is free again when this is dropped. See longvita.platforms.base.Offloaded."""

    def __init__(self, file: SpillFile, writing: Future[None], tensor: Tensor, offset: int):
        self._file, self._writing, self._offset = file, writing, offset
        self._shape, self._dtype = tensor.shape, tensor.dtype
        self._size = tensor.numel() * tensor.element_size()
        self._reading: Future[Tensor] | None = None

    def start(self) -> None:
        """See Offloaded."""
        if self._reading is None:
            self._reading = self._file.read(self._offset, self._shape, self._dtype)

    def fetch(self) -> Tensor:
        """See Offloaded."""
        self.start()
        _result(self._writing)
        if self._reading is None:
            raise RuntimeError("nothing is being read")
        reading, self._reading = self._reading, None
        return _result(reading)

    def __del__(self) -> None:
        self._file.release(self._offset, self._size)


def _result(future: Future[_T]) -> _T:
    try:
        return future.result()
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> PlatformError:
    return PlatformError(
        f"layer inputs cannot be put away below TMPDIR: {error}; set it to a folder with room, or "
        f"training.recompute.offload to false"
    )


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
