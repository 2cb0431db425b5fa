"""Memory that the training process and a data worker share: the tiles of a task, decoded in place and never copied.

It has no name and no file: it goes when the last process that has it lets go of it, however that ends, and no limit on
/dev/shm applies.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np


class TileArena:
    """The tiles of a task."""

    def __init__(self, num_tiles: int, image_size: int, descriptor: int | None = None):
        """Makes a new one, or opens the one of a descriptor, which it takes over."""
        shape = (num_tiles, image_size, image_size, 3)
        size = num_tiles * image_size * image_size * 3
        if descriptor is None:
            descriptor = os.memfd_create("tiles")
            os.ftruncate(descriptor, size)
        # The mapping keeps a descriptor of its own while there are arrays upon it.
        self.tiles = np.frombuffer(mmap.mmap(descriptor, size), np.uint8).reshape(shape)
        """uint8 [n, S, S, 3]; it may outlive the arena."""
        self._descriptor = descriptor

    def send(self, connection: Connection) -> None:
        """Gives the process at the other end of a connection access."""
        reduction.send_handle(connection, self._descriptor, None)

    @classmethod
    def receive(cls, connection: Connection, num_tiles: int, image_size: int) -> TileArena:
        """The arena that the other end of a connection sent."""
        return cls(num_tiles, image_size, reduction.recv_handle(connection))

    def close(self) -> None:
        """Gives up the means to send it; `tiles` stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
