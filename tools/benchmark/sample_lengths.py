"""Lengths of samples distributed like the public mix, for benchmarks of packing and of context parallelism.

An assumption, not a measurement of the mix: text, one picture in up to 12 tiles and its thumbnail, several pictures,
videos at one frame per second, films and comics. A sample has its text tokens and 258 tokens per tile or frame.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

TOKENS_PER_TILE = 258


@dataclass(frozen=True)
class SampleKind:
    """A kind of sample."""

    share: float
    """Fraction of all samples."""
    median: float
    """Median of its text, tokens; the distribution is log-normal."""
    sigma: float
    """Standard deviation of the text's logarithm."""
    shortest: int
    longest: int
    tiles: tuple[tuple[int, int, float], ...]
    """(minimum, maximum, weight) of each choice of tiles, uniformly distributed."""


KINDS = {
    "text": SampleKind(0.12, 420, 0.9, 16, 8192, ((0, 0, 1.0),)),
    "one picture": SampleKind(
        0.66, 180, 0.8, 12, 4096,
        ((1, 1, 0.2), (3, 3, 0.15), (5, 5, 0.2), (7, 7, 0.2), (9, 9, 0.05), (10, 10, 0.05), (13, 13, 0.15)),
    ),
    "several pictures": SampleKind(0.1, 260, 0.8, 16, 4096, ((2, 8, 0.8), (9, 24, 0.2))),
    "short video": SampleKind(0.1, 150, 0.7, 12, 2048, ((8, 32, 0.5), (33, 63, 0.4), (64, 127, 0.1))),
    "film or comic": SampleKind(0.02, 700, 0.6, 64, 8192, ((60, 160, 0.6), (161, 508, 0.4))),
}  # fmt: skip


def draw(generator: random.Random) -> int:
    """Draw the number of tokens of a sample."""
    kinds = list(KINDS.values())
    (kind,) = generator.choices(kinds, [kind.share for kind in kinds])
    text = round(generator.lognormvariate(math.log(kind.median), kind.sigma))
    ((low, high, _),) = generator.choices(kind.tiles, [weight for *_, weight in kind.tiles])
    return min(max(text, kind.shortest), kind.longest) + TOKENS_PER_TILE * generator.randint(low, high)


def packed(generator: random.Random, length: int, misses: int = 20) -> list[int]:
    """Draw samples for a sequence until `misses` in a row do not fit, and return the lengths of those that do."""
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
