"""Sampling against probabilities worked out from the definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from longvita.config.schema import InferenceConfig
from longvita.inference.sampling import Sampler, Sampling, token_probabilities

LOGITS = torch.tensor([1.0, 3.0, -2.0, 2.5, 0.0, 3.0, -1.0, 2.0])


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Temperature, then the top_k largest, then the fewest that reach top_p; ties to the lower id."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[: top_k or len(order)]
    weights = {i: math.exp(logits[i] / temperature) for i in kept}
    total = sum(weights.values())
    nucleus, mass = [], 0.0
    for i in kept:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    list(itertools.product((0.3, 1.0, 2.0), (0, 1, 3, 100), (0.05, 0.5, 0.9, 1.0))),
)
def test_probabilities_equal_the_definition(temperature: float, top_k: int, top_p: float) -> None:
    found = token_probabilities(LOGITS, Sampling(temperature, top_k, top_p))
    expected = torch.tensor(reference(LOGITS.tolist(), temperature, top_k, top_p))
    assert torch.allclose(found, expected, atol=1e-6)


def test_drawn_tokens_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=1.3, top_k=5, top_p=0.95, seed=11)
    sampler, draws = Sampler(sampling), 20_000
    counts = torch.bincount(torch.tensor([sampler.sample(LOGITS) for _ in range(draws)]), minlength=len(LOGITS))
    expected = token_probabilities(LOGITS, sampling) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # Chi-squared with at most 4 degrees of freedom: 23.5 is exceeded once in 10,000 seeds.
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 23.5


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(Sampling()).sample(LOGITS) == 1
    assert Sampler(Sampling()).sample(-LOGITS) == 2


def test_sampling_at_the_smallest_temperature_is_finite() -> None:
    for scale in (1.0, 1e4):
        probabilities = token_probabilities(LOGITS * scale, Sampling(temperature=1e-4))
        assert probabilities.isfinite().all() and float(probabilities.sum()) == pytest.approx(1.0)
    assert Sampler(Sampling(temperature=1e-4, seed=2**64 - 1)).sample(LOGITS) in (1, 5)


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.sample(LOGITS) for _ in range(30)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_low_precision_logits_are_computed_in_fp32() -> None:
    logits = torch.linspace(-2, 2, 1000).bfloat16()
    found = token_probabilities(logits, Sampling(temperature=0.7, top_p=0.9))
    assert found.dtype == torch.float32
    assert abs(float(found.sum()) - 1) < 1e-6


def test_settings_come_from_the_config() -> None:
    config = InferenceConfig(temperature=0.5, top_k=7, top_p=0.8, max_new_tokens=9)
    assert Sampling.from_config(config, seed=3) == Sampling(0.5, 7, 0.8, 9, 3)


OUT_OF_RANGE: list[tuple[str, float]] = [
    ("temperature", -0.1), ("temperature", 9e-5), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
    ("top_p", 1.5), ("max_new_tokens", 0),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}, but must be"):
        Sampling(**{field: value})
