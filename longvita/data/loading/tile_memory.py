"""Memory for tiles: shared with a data worker, which decodes into it, and used again once nobody looks at it.

Memory that is new to a process must be cleared by the kernel, page by page, which takes about as long as decoding into
it. So a block comes back when the last array upon it is gone, and the next one to ask gets it.

Shared blocks have no name and no file: a block goes when the last process that has it lets go of it, however that ends,
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
"""Free blocks that are kept: one comes back before the next is asked for."""


class MemoryBlock:
    """Memory of this process alone."""

    def __init__(self, size: int):
        self.size = size
        """Bytes."""
        self.mapping = mmap.mmap(-1, size)


class SharedBlock(MemoryBlock):
    """Memory that another process can be given access to."""

    def __init__(self, size: int, descriptor: int | None = None):
        """Makes a new one, or opens the one of a descriptor, which it takes over."""
        flags = mmap.MAP_SHARED
        if descriptor is None:
            descriptor = os.memfd_create("tiles")
            os.ftruncate(descriptor, size)
        else:
            flags |= mmap.MAP_POPULATE  # It is written from end to end, and page by page that takes longer.
        self.size, self.descriptor = size, descriptor
        self.mapping = mmap.mmap(descriptor, size, flags)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def send(self, connection: Connection) -> None:
        """Gives the process at the other end of a connection access."""
        reduction.send_handle(connection, self.descriptor, None)

    @classmethod
    def receive(cls, connection: Connection, size: int) -> SharedBlock:
        """The block that the other end of a connection sent."""
        return cls(size, reduction.recv_handle(connection))


class TilePool:
    """Gives memory to arrays, and takes it back from those that are gone."""

    def __init__(self, kind: type[MemoryBlock] = MemoryBlock):
        self._kind = kind
        self._free: collections.deque[MemoryBlock] = collections.deque(maxlen=KEPT_BLOCKS)

    def take(self, size: int) -> MemoryBlock:
        """A block of at least `size` bytes, above 0; smaller ones that are free are given up."""
        while self._free:
            block = self._free.popleft()
            if block.size >= size:
                return block
        return self._kind(size)

    def array(self, shape: tuple[int, ...], dtype: type[np.generic], block: MemoryBlock | None = None) -> np.ndarray:
        """An array of any content, upon `block` if given; the block comes back when no view of the array is left."""
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        block = block or self.take(math.prod(shape) * np.dtype(dtype).itemsize)
        array = np.frombuffer(block.mapping, dtype, math.prod(shape))
        weakref.finalize(array, self._free.append, block).atexit = False
        return array.reshape(shape)
