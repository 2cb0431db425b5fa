"""Which samples of each file a mix uses, and in which order: the published rule, as a function of the seed."""

from __future__ import annotations

import math
import zlib

import numpy as np


def select_samples(num_samples: int, ratio: float, num: int, seed: int, name: str) -> np.ndarray:
    """Select the samples [k] int64 of one file of `num_samples`; k = min(int(num_samples * ratio), num).

    They are the first k of the shuffled file; a ratio above 1 repeats the file, shuffled again. The shuffle depends on
    `seed` and on `name` (the source and the path in the config), not on the other files of the mix.
    """
    wanted = min(int(num_samples * ratio), num)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rounds = [rng.permutation(num_samples) for _ in range(math.ceil(wanted / max(num_samples, 1)))]
    return np.concatenate([*rounds, np.zeros(0, np.int64)])[:wanted].astype(np.int64)


def shuffle(samples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return all samples of the mix in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(samples)
