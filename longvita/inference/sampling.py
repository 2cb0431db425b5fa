"""Sampling of the next token: greedy, or by temperature, top-k and top-p with a seed."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from longvita.config.schema import MIN_TEMPERATURE, InferenceConfig


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one answer is sampled. Raises ValueError for values outside their range."""

    temperature: float = 0.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Sample among this many most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Sample among the fewest most probable tokens with this much probability together, after temperature and top-k."""
    max_new_tokens: int = 1024
    """Longest answer, tokens."""
    seed: int = 42
    """One seed gives one answer at every layout."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf,
                f"0 or at least {MIN_TEMPERATURE}",
            ),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (fits, limit) in limits.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {limit}")

    @classmethod
    def from_config(cls, config: InferenceConfig, seed: int) -> Sampling:
        """Read the sampling of a config's inference section."""
        return cls(config.temperature, config.top_k, config.top_p, config.max_new_tokens, seed)


class Sampler:
    """Samples the tokens of one answer, with random numbers from the seed of `sampling`."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        # On the host for logits of any device, so that a seed has the same meaning everywhere.
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def sample(self, logits: Tensor) -> int:
        """Return the next token's id from its logits [v]."""
        return int(logits.argmax() if self.sampling.temperature == 0 else self._draw(logits))

    def _draw(self, logits: Tensor) -> Tensor:
        probabilities = token_probabilities(logits, self.sampling).cpu()
        return torch.multinomial(probabilities, 1, generator=self._generator)


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities [v] (fp32, sum 1) of the next token, for a temperature above 0."""
    values = logits.float() / sampling.temperature
    if 0 < sampling.top_k < values.shape[-1]:
        # Of equal logits the lower ids stay, so that exactly top_k tokens do.
        kept = values.sort(descending=True, stable=True).indices[: sampling.top_k]
        values = torch.full_like(values, float("-inf")).scatter(0, kept, values[kept])
    probabilities = values.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        # The first token always stays: nothing is before it.
        probabilities = torch.zeros_like(ordered).scatter(0, ids, ordered * (before < sampling.top_p))
    return probabilities / probabilities.sum()
