"""One step: its figures, batches without pictures or loss, frozen parts, and the work it counts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longvita.config.flops import Workload, training_flops
from longvita.data.batch import IGNORED_LABEL
from longvita.training.step import TrainingError, evaluate, forward_backward, train_step
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import run_config, run_steps, start, tensors
from tests.tiny import batches, micro_batch, sequence


def figures(rank, world_size, layout, micro_batch_size):
    config = run_config(layout, training={"micro_batch_size": micro_batch_size})
    state = start(config)
    before, _ = evaluate(state, batches(config, state.groups), state.micro_batches, ("words", "pictures"))
    step = train_step(state, batches(config, state.groups))
    return dataclasses.asdict(before), dataclasses.asdict(step)


def expected_counts(config):
    parts = [sequence(number, config) for number in range(4)]
    lengths = [int(n) for part in parts for n in part["lengths"][:2]]
    return {
        "tokens": sum(lengths),
        "attention_pairs": sum(n * (n + 1) // 2 for n in lengths),
        "loss_tokens": sum(int((part["labels"] != IGNORED_LABEL).sum()) for part in parts),
        "tiles": sum(len(part["tile_starts"]) for part in parts),
    }


@pytest.mark.parametrize(("layout", "micro_batch_size"), [("dp2", 1), ("pp2", 2)])
def test_figures_are_those_of_the_global_batch(layout, micro_batch_size):
    first, second = run_distributed(figures, 2, layout, micro_batch_size)
    assert first == second
    before, step = first
    counts = expected_counts(run_config(layout))
    assert step["batch"]["work"] == counts
    assert step["batch"]["padding_tokens"] == 4 * 64 - counts["tokens"]
    # The step's loss is the undivided one of the weights before it, though the schedule divides it in place.
    assert step["losses"]["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert before["loss"] == pytest.approx(math.log(128), rel=0.1)
    assert step["losses"]["loss_tokens"] == before["loss_tokens"] == counts["loss_tokens"]
    assert set(before["source_losses"]) == {"words", "pictures"}
    assert step["lr"] == pytest.approx(0.5 * 1e-2)
    assert 0.1 < step["grad_norm"] < 100


def few_tiles(rank, world_size, layout):
    """Steps whose batches have tiles on some ranks, on one, or on none."""
    state = start(run_config(layout, optimizer={"lr": 1e-3}))
    return [run_steps(state, 2, tiles=tiles) for tiles in (2, 1, 0, 3)]


@pytest.mark.parametrize("layout", ["tp2_sp", "dp2", "pp2"])
def test_ranks_without_tiles_take_part(layout):
    single = run_distributed(few_tiles, 1, "dp2")[0]
    found = run_distributed(few_tiles, 2, layout)[0]
    for some, wanted in zip(found, single, strict=True):
        assert [loss for loss, _ in some] == pytest.approx([loss for loss, _ in wanted], rel=1e-5)
        assert [norm for _, norm in some] == pytest.approx([norm for _, norm in wanted], rel=1e-4)


def no_loss(rank, world_size, layout):
    config = run_config(layout)
    state = start(config)
    run_steps(state, 1)
    empty = [micro_batch([number], config, state.groups) for number in range(state.micro_batches)]
    for batch in empty:
        batch.labels.fill_(IGNORED_LABEL)
    before = tensors(state)
    step = train_step(state, empty)
    after = tensors(state)
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return step.losses.loss, step.losses.loss_tokens, step.grad_norm, same, run_steps(state, 1)[0]


@pytest.mark.parametrize("layout", ["tp2_sp", "pp2"])
def test_a_global_batch_without_loss_changes_no_weight(layout):
    for loss, tokens, norm, same, (after, after_norm) in run_distributed(no_loss, 2, layout):
        assert (loss, tokens, norm) == (0.0, 0, 0.0)
        assert same
        assert math.isfinite(after) and after_norm > 0


class WidestLogits(TorchDispatchMode):
    """Notes the most rows of any tensor made with as many columns as this rank has words."""

    def __init__(self, config, state):
        super().__init__()
        self.columns = config.model.language.vocab_size // state.groups.tp_size
        self.hidden = config.model.language.hidden_size
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if torch.is_tensor(tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.columns:
                rows = tensor.numel() // self.columns
                self.rows = max(self.rows, 0 if rows == self.hidden else rows)
        return output


def widest_logits(rank, world_size, layout, chunk):
    # No other size of the model equals this vocabulary or half of it.
    config = run_config(layout, model={"language": {"vocab_size": 144}}, training={"loss_chunk_size": chunk})
    state = start(config)
    with WidestLogits(config, state) as watch:
        losses = train_step(state, batches(config, state.groups)).losses
    return watch.rows, losses.loss_tokens


@pytest.mark.parametrize(("layout", "processes"), [({}, 1), ("tp2_sp", 2)])
def test_a_step_never_holds_the_logits_of_all_tokens(layout, processes):
    """From the model's input to its last gradient: nothing of [tokens, vocabulary / TP] exists."""
    for rows, _ in run_distributed(widest_logits, processes, layout, 8):
        assert rows == 8
    for rows, loss_tokens in run_distributed(widest_logits, processes, layout, 1024):
        assert 8 < rows <= loss_tokens, "only positions that carry loss have logits"


def not_finite(rank, world_size):
    state = start(run_config("dp2"))
    with torch.no_grad():
        dict(state.models[0].named_parameters())["language_model.output_layer.weight"][0, 0] = float("nan")
    with pytest.raises(TrainingError) as caught:
        run_steps(state, 1)
    with pytest.raises(TrainingError) as empty:
        train_step(state, [])
    return str(caught.value), str(empty.value)


def test_a_gradient_that_is_not_a_number_or_no_data_ends_the_run():
    for message, empty in run_distributed(not_finite, 2):
        assert message == "the loss of a step is nan, its gradient norm nan"
        assert "no micro batch" in empty


def measured(rank, world_size, trainable):
    """Operations that torch counts in a forward and backward pass, attention apart."""
    config = run_config({}, training={"trainable": trainable, "global_batch_size": 1, "overlap_grad_reduce": False})
    state = start(config)
    batch = micro_batch([2], config, state.groups, tiles=3)
    with FlopCounterMode(display=False) as counter:
        losses, found = forward_backward(state, [batch], 1, ())
    work = Workload(tokens=batch.input_ids.shape[1], loss_tokens=losses.loss_tokens, tiles=len(batch.tiles))
    padding = work.tokens - found.work.tokens
    attention = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op))
    return counter.get_total_flops() - attention, work, padding


@pytest.mark.parametrize("trainable", [["vision", "projector", "language"], ["projector"], ["language"]])
def test_linear_work_is_what_torch_counts(trainable):
    flops, work, padding = run_distributed(measured, 1, trainable)[0]
    model = run_config({}).model
    # Torch sees padding as well; and attention, which it counts as if it were not causal, is left out on both sides.
    without_attention = training_flops(model, work, trainable) - vision_attention(model, work, trainable)
    assert padding >= 0
    assert flops == without_attention


def vision_attention(model, work, trainable):
    vision = model.vision
    forward = 4 * vision.num_layers * vision.sequence_length**2 * vision.hidden_size * work.tiles
    return forward * (3 if "vision" in trainable else 1)
