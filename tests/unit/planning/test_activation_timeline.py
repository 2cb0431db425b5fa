"""Bytes of small graphs that can be counted by hand."""

from __future__ import annotations

from longvita.planning.activation_timeline import Tape


def chain(tape: Tape, length: int, keep: bool):
    """A row of operators, 10 bytes each, that keep their inputs or nothing."""
    x = tape.tensor(10)
    for _ in range(length):
        x = tape.operator([x], 10, keeps=[x] if keep else [])
    return x


def test_what_nobody_keeps_is_free_at_once():
    tape = Tape()
    chain(tape, 5, keep=False)
    assert (tape.now, tape.peak) == (10, 20)


def test_what_is_kept_stays_until_its_backward_pass():
    tape = Tape()
    output = chain(tape, 5, keep=True)
    assert (tape.now, tape.peak) == (60, 60)
    tape.backward(output)
    tape.drop(output)
    # Five inputs, the output, its gradient and that of the last input.
    assert tape.peak == 80
    assert tape.now == 10, "the gradient of the first tensor"


def test_weights_gradients_and_scratch_live_for_a_moment():
    tape = Tape()
    x = tape.tensor(10)
    y = tape.operator([x], 10, keeps=[x], scratch=7, backward_scratch=5, weight_gradient=100)
    assert (tape.now, tape.peak) == (20, 27)
    tape.backward(y)
    assert tape.peak == 20 + 10 + 100 + 10 + 5


def test_nothing_is_kept_without_gradients():
    tape = Tape()
    with tape.without_gradients():
        chain(tape, 5, keep=True)
    assert tape.now == 10
    frozen = Tape()
    x = frozen.tensor(10, differentiable=False)
    frozen.operator([x], 10, keeps=[x])
    assert frozen.now == 10


def test_a_checkpoint_keeps_its_input_and_computes_again():
    def run(away: bool) -> tuple[int, int]:
        tape = Tape()

        def layer(x):
            for _ in range(3):
                x = tape.operator([x], 10, keeps=[x])
            return x

        x = tape.tensor(10)
        for _ in range(4):
            x = tape.checkpoint(layer, x, away=away)
        kept = tape.now
        tape.backward(x)
        return kept, tape.peak

    # Four inputs and the output; then one layer's four tensors again, the layer's output gradient twice handed on.
    assert run(away=False) == (50, 100)
    # What is away is not there: the last output alone, and two inputs on their way in the backward pass.
    kept, peak = run(away=True)
    assert kept == 10 and peak < 100


def test_gradients_of_parts_are_joined():
    tape = Tape()
    parts = tape.views(tape.operator([tape.tensor(12)], 12), [4, 8])
    assert tape.now == 12, "parts are views"
    joined = tape.operator(parts, 12)
    tape.backward(joined)
    tape.drop(joined)
    assert tape.now == 12, "the gradient of the first tensor"


def test_the_gather_buffer_stays_and_grows():
    tape = Tape()
    for size in (10, 5, 30):
        tape.gather_buffer(size)
    assert tape.now == tape.live["communication"] == 30


def test_the_loss_hands_over_what_it_made():
    tape = Tape()
    rows = tape.operator([tape.tensor(10)], 10)
    loss = tape.loss(rows, weight_gradient=50, scratch=20, cast=0)
    assert tape.peak == 10 + 4 + 10 + 50 + 20
    assert tape.now == 4 + 10 + 50
    tape.backward(loss)
    tape.drop(loss)
    assert tape.now == 10
