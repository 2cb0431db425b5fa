"""One loss and one gradient at every layout.

A mixed global batch (several pictures, a video, text alone, packed documents) goes through one process and through
each layout. Tolerances: loss and gradient norm 1e-5 relative; a gradient 1e-5 of the larger of its tensor's largest
entry and a thousandth of the model's largest; parameters after three clipped steps likewise. Replicas are bitwise
equal.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.helpers import run_distributed
from tests.distributed.mixed_batch import MIXED, ONE_TILE, TEXT_ALONE, micro_batches, tiny_config
from tests.distributed.whole_tensors import local_parts, whole_tensors

TOLERANCE = 1e-5
STEPS = 3

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"layout": {"tensor_parallel": 2}}),
    "TP2+SP": (2, {"layout": {"tensor_parallel": 2, "sequence_parallel": True}}),
    "PP2": (2, {"layout": {"pipeline_parallel": 2}}),
    "PP2, uneven": (2, {"layout": {"pipeline_parallel": 2, "num_layers_in_first_pipeline_stage": 1}}),
    "PP2, interleaved": (2, {"layout": {"pipeline_parallel": 2, "virtual_pipeline": 2}}),
    "TP2 x PP2 + SP": (4, {"layout": {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}}),
    "DP2": (2, {}),
    "CP2": (2, {"layout": {"context_parallel": 2, "ulysses": 1}}),
    "CP2, Ulysses": (2, {"layout": {"context_parallel": 2, "ulysses": 2}}),
    "CP4": (4, {"layout": {"context_parallel": 4, "ulysses": 1}}),
    "CP4, ring of Ulysses": (4, {"layout": {"context_parallel": 4, "ulysses": 2}}),
    "TP2 x CP2": (4, {"layout": {"tensor_parallel": 2, "context_parallel": 2}}),
    "TP2 x CP2 + SP": (4, {"layout": {"tensor_parallel": 2, "context_parallel": 2, "sequence_parallel": True}}),
    "CP2 x PP2": (4, {"layout": {"pipeline_parallel": 2, "context_parallel": 2}}),
    "CP2 x DP2": (4, {"layout": {"context_parallel": 2}}),
    "CP2, full recomputation": (
        2,
        {
            "layout": {"context_parallel": 2},
            "training": {"recompute": {"granularity": "full", "method": "block", "num_layers": 4}},
        },
    ),
    "DP2 x TP2 + SP": (4, {"layout": {"tensor_parallel": 2, "sequence_parallel": True}}),
    "accumulation of pairs": (1, {"training": {"micro_batch_size": 2}}),
    "one micro batch": (1, {"training": {"micro_batch_size": 4}}),
    "full recomputation": (
        1,
        {"training": {"recompute": {"granularity": "full", "method": "block", "num_layers": 4, "vision": True}}},
    ),
    "MLP in chunks": (1, {"training": {"mlp_chunk_size": 50}}),
    "TP2 + SP, MLP in chunks, full recomputation": (
        2,
        {
            "layout": {"tensor_parallel": 2, "sequence_parallel": True},
            "training": {
                "mlp_chunk_size": 20,
                "recompute": {"granularity": "full", "method": "block", "num_layers": 2},
            },
        },
    ),
    "DP2, MLP in chunks": (2, {"training": {"mlp_chunk_size": 33}}),
    "full recomputation, offloaded layer inputs": (
        1,
        {"training": {"recompute": {"granularity": "full", "method": "uniform", "offload": True}}},
    ),
    "PP2, interleaved, a layer of each chunk and the tower recomputed": (
        2,
        {
            "layout": {"pipeline_parallel": 2, "virtual_pipeline": 2},
            "training": {"recompute": {"granularity": "full", "method": "block", "num_layers": 1, "vision": True}},
        },
    ),
    "PP2, interleaved, offloaded layer inputs": (
        2,
        {
            "layout": {"pipeline_parallel": 2, "virtual_pipeline": 2},
            "training": {"recompute": {"granularity": "full", "method": "uniform", "offload": True}},
        },
    ),
    "selective recomputation": (1, {"training": {"recompute": {"granularity": "selective"}}}),
}


def _run(rank: int, size: int, sections: dict[str, Any], sequences: tuple[int, ...] = MIXED) -> dict[str, Any]:
    """Gradients of the first batch, then the parameters after three steps of the optimizer, of this rank."""
    from longvita.platforms import get
    from longvita.training.state import build_state
    from longvita.training.step import forward_backward, train_step
    from longvita.verify.compare import gather_gradients

    # Adam divides a gradient by its own size, which hides a wrong scale and blows up the rounding of tiny entries; with
    # this epsilon a step is close to linear in the gradient.
    config = tiny_config(**sections, optimizer={"adam_eps": 1e-2})
    platform = get(config.platform)
    platform.activate()
    groups = platform.build_groups(config)
    state = build_state(config, groups, platform)
    batches = micro_batches(config, groups, sequences=sequences)
    for chunk in state.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    losses, _ = forward_backward(state, batches, len(batches), ("pictures", "text"))
    gather_gradients(state)
    gradients = local_parts(state.models, groups, lambda p: p.main_grad if p.requires_grad else None)
    steps = [train_step(state, micro_batches(config, groups, seed, sequences), len(batches)) for seed in range(STEPS)]
    return {
        "loss": losses.loss,
        "sources": losses.source_losses,
        "gradients": gradients,
        "norms": [step.grad_norm for step in steps],
        "losses": [step.losses.loss for step in steps],
        "parameters": local_parts(state.models, groups, lambda p: p),
    }


@cache
def _reference(sequences: tuple[int, ...] = MIXED) -> dict[str, Any]:
    return run_distributed(_run, 1, {}, sequences)[0]


def _assert_close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    floor = 1e-3 * max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        allowed = TOLERANCE * max(float(value.abs().max()), floor)
        difference = float((got[name] - value).abs().max())
        assert difference <= allowed, f"{name}: differs by {difference:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradients_and_steps_equal_one_process(layout: str) -> None:
    size, sections = LAYOUTS[layout]
    _compare(_reference(), run_distributed(_run, size, sections))


@pytest.mark.parametrize("layout", ["DP2", "TP2", "TP2+SP"])
def test_ranks_without_a_picture_take_part(layout: str) -> None:
    """At DP2 one replica's whole batch is text; at TP2 one rank has no tile of the second micro batch."""
    _, sections = LAYOUTS[layout]
    sequences = (TEXT_ALONE, ONE_TILE)
    _compare(_reference(sequences), run_distributed(_run, 2, sections, sequences))


def _compare(reference: dict[str, Any], results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["loss"] == pytest.approx(reference["loss"], rel=TOLERANCE)
        assert result["sources"] == pytest.approx(reference["sources"], rel=TOLERANCE)
        assert result["norms"] == pytest.approx(reference["norms"], rel=TOLERANCE)
        assert result["losses"] == pytest.approx(reference["losses"], rel=TOLERANCE)
    for kind in ("gradients", "parameters"):
        expected = whole_tensors([reference[kind]])
        _assert_close(whole_tensors([r[kind] for r in results]), expected)
    replicas = {r["parameters"]["place"][0] for r in results}
    first = whole_tensors([r["parameters"] for r in results])
    for replica in replicas - {0}:
        other = whole_tensors([r["parameters"] for r in results], replica)
        assert all(torch.equal(other[name], value) for name, value in first.items())


def test_the_batch_reaches_every_parameter_and_is_clipped() -> None:
    """The comparison above would show nothing about a parameter whose gradient is zero, or about clipping."""
    reference = _reference()
    gradients = whole_tensors([reference["gradients"]])
    assert all(float(value.abs().max()) > 0 for value in gradients.values())
    assert min(reference["norms"]) > tiny_config().optimizer.clip_grad
    norm = torch.stack([value.double().square().sum() for value in gradients.values()]).sum().sqrt()
    assert reference["norms"][0] == pytest.approx(float(norm), rel=TOLERANCE)
