"""Memory for tiles: shared with a data worker, which decodes into it, and reused when no array refers to it.

The kernel must clear memory that is new to a process, page by page, which takes about as long as decoding into it. So
a block returns to its pool when the last array on it is freed, and the next request gets it.

Shared blocks have no name and no file: the kernel frees a block when the last process that maps it closes it or ends,
and no limit on /dev/shm applies.
"""

from __future__ import annotations

import collections
import math
import mmap
import os
import weakref
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np

KEPT_BLOCKS = 2
"""Free blocks that a pool keeps: one usually returns before the next is requested."""


class MemoryBlock:
    """Private memory of this process."""

    def __init__(self, size: int):
        self.size = size
        """Bytes."""
        self.mapping = mmap.mmap(-1, size)


class SharedBlock(MemoryBlock):
    """Memory that can be shared with another process."""

    def __init__(self, size: int, descriptor: int | None = None):
        """Allocate a block, or map that of a descriptor, which is closed with the block."""
        flags = mmap.MAP_SHARED
        if descriptor is None:
            descriptor = os.memfd_create("tiles")
            os.ftruncate(descriptor, size)
        else:
            flags |= mmap.MAP_POPULATE  # All of it will be written, and faulting in page by page is slower.
        self.size, self.descriptor = size, descriptor
        self.mapping = mmap.mmap(descriptor, size, flags)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def send(self, connection: Connection) -> None:
        """Send the block to the process at the other end of a connection."""
        reduction.send_handle(connection, self.descriptor, None)

    @classmethod
    def receive(cls, connection: Connection, size: int) -> SharedBlock:
        """Receive the block that the other end of a connection sent."""
        return cls(size, reduction.recv_handle(connection))


class TilePool:
    """A pool of memory blocks for arrays; the block of a freed array is reused."""

    def __init__(self, kind: type[MemoryBlock] = MemoryBlock):
        self._kind = kind
        self._free: collections.deque[MemoryBlock] = collections.deque(maxlen=KEPT_BLOCKS)

    def take(self, size: int) -> MemoryBlock:
        """Return a block of at least `size` bytes, above 0; smaller free blocks are dropped."""
        while self._free:
            block = self._free.popleft()
            if block.size >= size:
                return block
        return self._kind(size)

    def array(self, shape: tuple[int, ...], dtype: type[np.generic], block: MemoryBlock | None = None) -> np.ndarray:
        """Return an uninitialised array, on `block` if given; the block returns to the pool when no view is left."""
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        block = block or self.take(math.prod(shape) * np.dtype(dtype).itemsize)
        array = np.frombuffer(block.mapping, dtype, math.prod(shape))
        weakref.finalize(array, self._free.append, block).atexit = False
        return array.reshape(shape)
