"""Choice of the next token from its logits: greedy, or sampled by temperature, top-k and top-p with a seed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from longvita.config.schema import InferenceConfig


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one answer is sampled. Raises ValueError for values outside their range."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Keeps this many most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keeps the fewest most probable tokens that hold this much probability (after temperature and top-k)."""
    max_new_tokens: int = 1024
    """Longest answer, tokens."""
    seed: int = 42
    """Seed of the sampler: the same seed gives the same answer at any layout."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (fits, limit) in limits.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {limit}")

    @classmethod
    def from_config(cls, config: InferenceConfig, seed: int) -> Sampling:
        """The sampling that a config's inference section names."""
        return cls(config.temperature, config.top_k, config.top_p, config.max_new_tokens, seed)


class Sampler:
    """Draws the tokens of one answer; its random state starts at the seed of `sampling`."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        # The generator is the host's whatever device the logits are on, so that a seed means the same everywhere.
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def sample(self, logits: Tensor) -> int:
        """The next token's id from its logits [v]."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = token_probabilities(logits, self.sampling).cpu()
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [v] (fp32, summing to 1) from which the next token is drawn; `sampling.temperature` above 0."""
    values = logits.float() / sampling.temperature
    if 0 < sampling.top_k < values.shape[-1]:
        # Ties at the limit go to the lower ids, so that exactly top_k tokens stay.
        kept = values.sort(descending=True, stable=True).indices[: sampling.top_k]
        values = torch.full_like(values, float("-inf")).scatter(0, kept, values[kept])
    probabilities = values.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        # The first token always stays: nothing stands before it.
        probabilities = torch.zeros_like(ordered).scatter(0, ids, ordered * (before < sampling.top_p))
    return probabilities / probabilities.sum()
