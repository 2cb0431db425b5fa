"""Bytes of small graphs, counted by hand."""

from __future__ import annotations

from longvita.planning.activation_timeline import ActivationTimeline


def chain(timeline: ActivationTimeline, length: int, keep: bool):
    """A chain of operators, 10 bytes each, that keep their inputs or nothing."""
    x = timeline.tensor(10)
    for _ in range(length):
        x = timeline.operator([x], 10, keeps=[x] if keep else [])
    return x


def test_tensors_that_nothing_keeps_are_freed_at_once():
    timeline = ActivationTimeline()
    chain(timeline, 5, keep=False)
    assert (timeline.now, timeline.peak) == (10, 20)


def test_kept_tensors_stay_until_their_backward_pass():
    timeline = ActivationTimeline()
    output = chain(timeline, 5, keep=True)
    assert (timeline.now, timeline.peak) == (60, 60)
    timeline.backward(output)
    timeline.drop(output)
    # Five inputs, the output, its gradient and that of the last input.
    assert timeline.peak == 80
    assert timeline.now == 10, "the gradient of the first tensor"


def test_weights_gradients_and_scratch_live_for_a_moment():
    timeline = ActivationTimeline()
    x = timeline.tensor(10)
    y = timeline.operator([x], 10, keeps=[x], scratch=7, backward_scratch=5, weight_gradient=100)
    assert (timeline.now, timeline.peak) == (20, 27)
    timeline.backward(y)
    assert timeline.peak == 20 + 10 + 100 + 10 + 5


def test_nothing_is_kept_without_gradients():
    timeline = ActivationTimeline()
    with timeline.without_gradients():
        chain(timeline, 5, keep=True)
    assert timeline.now == 10
    frozen = ActivationTimeline()
    x = frozen.tensor(10, differentiable=False)
    frozen.operator([x], 10, keeps=[x])
    assert frozen.now == 10


def test_a_checkpoint_keeps_its_input_and_recomputes():
    def run(offload: bool) -> tuple[int, int]:
        timeline = ActivationTimeline()

        def layer(x):
            for _ in range(3):
                x = timeline.operator([x], 10, keeps=[x])
            return x

        x = timeline.tensor(10)
        for _ in range(4):
            x = timeline.checkpoint(layer, x, offload=offload)
        kept = timeline.now
        timeline.backward(x)
        return kept, timeline.peak

    # Four inputs and the output; then one layer's four tensors again, its output gradient and the next two gradients.
    assert run(offload=False) == (50, 100)
    # Offloaded inputs take no memory: only the last output, and in the backward pass two inputs that are copied back.
    kept, peak = run(offload=True)
    assert kept == 10 and peak < 100


def test_gradients_of_parts_are_joined():
    timeline = ActivationTimeline()
    parts = timeline.views(timeline.operator([timeline.tensor(12)], 12), [4, 8])
    assert timeline.now == 12, "parts are views"
    joined = timeline.operator(parts, 12)
    timeline.backward(joined)
    timeline.drop(joined)
    assert timeline.now == 12, "the gradient of the first tensor"


def test_the_gather_buffer_stays_and_grows():
    timeline = ActivationTimeline()
    for size in (10, 5, 30):
        timeline.gather_buffer(size)
    assert timeline.now == timeline.live["communication"] == 30
    assert timeline.allocated == 10 + 5 + 30, "each gather is written"


def test_the_backward_pass_gathers_again():
    timeline = ActivationTimeline()
    x = timeline.tensor(10)
    out = timeline.linear(x, 10, weight=0, trained=True, gathers=20)
    assert timeline.now == 10 + 10 + 20
    before = timeline.allocated
    timeline.backward(out)
    assert timeline.allocated == before + 10 + 20 + 10, "gradients of output and input, and the gathered rows"


def test_the_loss_keeps_its_gradients_for_the_backward_pass():
    timeline = ActivationTimeline()
    rows = timeline.operator([timeline.tensor(10)], 10)
    loss = timeline.loss(rows, weight_gradient=50, scratch=20, cast=0)
    assert timeline.peak == 10 + 4 + 10 + 50 + 20
    assert timeline.now == 4 + 10 + 50
    timeline.backward(loss)
    timeline.drop(loss)
    assert timeline.now == 10
