"""Lengths of samples in the shape of the public mix, for benchmarks of packing and of context parallelism.

An assumption, not a measurement of the mix: text, one picture in up to 12 tiles and its thumbnail, several pictures,
videos at one frame a second, films and comics. A sample's tokens are its text and 258 a tile or frame.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

TOKENS_PER_TILE = 258


@dataclass(frozen=True)
class Kind:
    """One kind of sample."""

    share: float
    """Of all samples."""
    median: float
    """Of its text, which is log-normal, tokens."""
    sigma: float
    """Of the text's logarithm."""
    shortest: int
    longest: int
    tiles: tuple[tuple[int, int, float], ...]
    """Fewest and most tiles, evenly spread between them, and the weight of that choice."""


KINDS = {
    "text": Kind(0.12, 420, 0.9, 16, 8192, ((0, 0, 1.0),)),
    "one picture": Kind(
        0.66, 180, 0.8, 12, 4096,
        ((1, 1, 0.2), (3, 3, 0.15), (5, 5, 0.2), (7, 7, 0.2), (9, 9, 0.05), (10, 10, 0.05), (13, 13, 0.15)),
    ),
    "several pictures": Kind(0.1, 260, 0.8, 16, 4096, ((2, 8, 0.8), (9, 24, 0.2))),
    "short video": Kind(0.1, 150, 0.7, 12, 2048, ((8, 32, 0.5), (33, 63, 0.4), (64, 127, 0.1))),
    "film or comic": Kind(0.02, 700, 0.6, 64, 8192, ((60, 160, 0.6), (161, 508, 0.4))),
}  # fmt: skip


def draw(generator: random.Random) -> int:
    """Tokens of one sample."""
    kinds = list(KINDS.values())
    (kind,) = generator.choices(kinds, [kind.share for kind in kinds])
    text = round(generator.lognormvariate(math.log(kind.median), kind.sigma))
    ((fewest, most, _),) = generator.choices(kind.tiles, [weight for *_, weight in kind.tiles])
    return min(max(text, kind.shortest), kind.longest) + TOKENS_PER_TILE * generator.randint(fewest, most)


def packed(generator: random.Random, length: int, misses: int = 20) -> list[int]:
    """Lengths of the samples of one sequence: they are drawn until so many in a row are too long for what is left."""
    lengths: list[int] = []
    missed = 0
    while missed < misses:
        tokens = draw(generator)
        if tokens <= length - sum(lengths):
            lengths.append(tokens)
            missed = 0
        else:
            missed += 1
    return lengths
