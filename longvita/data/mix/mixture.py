"""Which samples of each file a mix takes, and in what order: the published rule, as a function of the seed."""

from __future__ import annotations

import math
import zlib

import numpy as np


def take(num_samples: int, ratio: float, num: int, seed: int, name: str) -> np.ndarray:
    """[k] int64: the samples that a mix takes of one file of `num_samples`: min(int(num_samples * ratio), num).

    The file is shuffled by `seed` first; a ratio above 1 goes through it again, shuffled anew. `name` (the source and
    the path in the config) gives each file a shuffle of its own, so that the other files of a mix have no part in it.
    """
    wanted = min(int(num_samples * ratio), num)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rounds = [rng.permutation(num_samples) for _ in range(math.ceil(wanted / max(num_samples, 1)))]
    return np.concatenate([*rounds, np.zeros(0, np.int64)])[:wanted].astype(np.int64)


def shuffle(samples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """All samples of the mix in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(samples)
