from __future__ import annotations

import multiprocessing

import numpy as np
import torch

from longvita.data.loading.tile_memory import KEPT_BLOCKS, SharedBlock, TilePool


def test_memory_comes_back_when_no_view_is_left():
    pool = TilePool()
    array = pool.array((4, 100), np.float32)
    place = array.ctypes.data
    tensor = torch.from_numpy(array[1:])
    del array
    assert pool.array((4, 100), np.float32).ctypes.data != place  # The tensor still looks at it.
    del tensor
    assert place in [pool.array((4, 100), np.float32).ctypes.data for _ in range(KEPT_BLOCKS)]


def test_arrays_in_use_never_share_memory():
    pool = TilePool()
    random = np.random.default_rng(0)
    live: list[tuple[np.ndarray, int]] = []
    for number in range(200):
        array = pool.array((int(random.integers(1, 50)), 3), np.uint8)
        array[...] = number
        live.append((array, number))
        if random.random() < 0.6:
            live.pop(int(random.integers(len(live))))
        assert all((kept == value).all() for kept, value in live)


def test_a_smaller_block_is_not_used():
    pool = TilePool()
    pool.array((10,), np.uint8)
    array = pool.array((5000,), np.uint8)
    array[...] = 1
    assert array.shape == (5000,)
    assert pool.array((0, 5), np.uint8).shape == (0, 5)


def test_a_shared_block_is_the_same_memory_at_the_other_end():
    ours, theirs = multiprocessing.Pipe()
    block = SharedBlock(5000)
    block.send(ours)
    received = SharedBlock.receive(theirs, 5000)
    received.mapping[10:13] = b"abc"
    assert block.mapping[10:13] == b"abc"
    assert received.descriptor != block.descriptor
