"""What counts as a bad step, and what a checkpoint keeps of the steps before it."""

from __future__ import annotations

import json
import math

import pytest

from longvita.checkpoint.step_history import StepHistory

WINDOW = 16


def history_of(*norms: float) -> StepHistory:
    history = StepHistory()
    for norm in norms:
        history.add_good(norm, WINDOW, 0)
    return history


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad_without_any_step_before(value):
    assert StepHistory().problem(value, 1.0, None, WINDOW) == f"the loss is {value}"
    assert StepHistory().problem(1.0, value, None, WINDOW) == f"the gradient norm is {value}"
    assert StepHistory().problem(1.0, 1.0, None, WINDOW) is None


def test_a_spike_is_measured_against_the_median():
    history = history_of(1.0, 2.0, 100.0)
    assert history.problem(1.0, 10.0, 5.0, WINDOW) is None, "five times the median, 2, is no spike"
    problem = history.problem(1.0, 10.1, 5.0, WINDOW)
    assert problem == "the gradient norm 10.1 is more than 5 times 2, the median of the last 3 steps"
    assert history.problem(1.0, 1e6, None, WINDOW) is None, "no step is a spike without a factor"


def test_the_first_steps_have_no_median():
    assert history_of(1.0).problem(1.0, 1e6, 5.0, WINDOW) is None
    assert history_of(1.0, 1.0).problem(1.0, 1e6, 5.0, WINDOW) is not None


def test_old_steps_leave_the_window():
    history = history_of(*[1.0] * WINDOW, *[100.0] * WINDOW)
    assert list(history.norms) == [100.0] * WINDOW
    assert history.problem(1.0, 300.0, 5.0, WINDOW) is None


def test_a_good_step_ends_the_row():
    history = StepHistory()
    history.add_bad(10)
    history.add_bad(10)
    assert (history.bad_in_row, history.bad_steps) == (2, 2)
    history.add_good(1.0, WINDOW, 20)
    history.add_bad(10)
    assert (history.bad_in_row, history.bad_steps) == (1, 3)


def test_a_checkpoint_keeps_all_of_it():
    history = history_of(1.0, 2.5)
    history.add_bad(10)
    history.passed_over = {12, 4}
    facts = json.loads(json.dumps(history.to_facts()))
    assert facts["passed_over"] == [4, 12]
    assert StepHistory.from_facts(facts) == history


def test_a_roll_back_restores_the_norms_and_counts_further():
    saved = history_of(1.0)
    saved.passed_over = {4}
    later = history_of(1.0, 2.0)
    later.add_bad(20)
    after = later.after_roll_back(20, saved)
    assert list(after.norms) == [1.0]
    assert (after.bad_in_row, after.bad_steps) == (1, 1)
    assert after.passed_over == {4, 20}
    after.add_good(1.0, WINDOW, 16)
    assert after.bad_in_row == 1, "a repeated step"
    after.add_good(1.0, WINDOW, 24)
    assert after.bad_in_row == 0
