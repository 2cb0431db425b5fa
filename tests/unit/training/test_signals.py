import os
import signal

import pytest
import torch

from longvita.processes import EXIT_COMPLETE, EXIT_REFUSED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT
from longvita.training.signals import Agreement, RunRequests, StopReason


def test_exit_codes_differ():
    codes = [EXIT_COMPLETE, EXIT_REFUSED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT]
    assert codes == [0, 2, 76, 75, 77]
    assert [StopReason(number).exit_code for number in range(4)] == [0, 77, 76, 75]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, StopReason.SIGTERM), (signal.SIGINT, StopReason.SIGINT)]
)
def test_signals_are_recorded_and_handlers_restored(number, reason):
    before = signal.getsignal(number)
    with RunRequests() as requests:
        assert requests.requested() is StopReason.NONE
        os.kill(os.getpid(), number)
        assert requests.requested() is reason
        os.kill(os.getpid(), number)
        assert requests.requested() is reason
    assert signal.getsignal(number) is before


def test_signals_are_ignored_once_the_ranks_have_agreed_to_stop(monkeypatch):
    """A rank that ends a moment after the first is sent SIGTERM by srun -K1, and still ends with its own code."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with RunRequests() as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.agree(torch.device("cpu")).stop is StopReason.SIGTERM
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_time_limit():
    now = [100.0]
    requests = RunRequests([None, 500.0, 120.0], clock=lambda: now[0])
    now[0] += 119.0
    assert requests.requested() is StopReason.NONE
    assert requests.requested(0.9) is StopReason.NONE
    assert requests.requested(1.0) is StopReason.TIME_LIMIT, "a step of one second would not end before the limit"
    now[0] += 1.0
    assert requests.requested() is StopReason.TIME_LIMIT


def test_without_a_limit_no_step_is_too_long():
    assert RunRequests([None]).requested(1e12) is StopReason.NONE


def test_sigusr1_saves_once_and_stops_nothing(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    before = signal.getsignal(signal.SIGUSR1)
    with RunRequests() as requests:
        assert requests.agree(torch.device("cpu")) == Agreement(StopReason.NONE, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.agree(torch.device("cpu")) == Agreement(StopReason.NONE, True)
        assert requests.agree(torch.device("cpu")) == Agreement(StopReason.NONE, False)
        assert requests.agree(torch.device("cpu"), save_due=True) == Agreement(StopReason.NONE, True)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_has_precedence_over_the_time_limit():
    now = [0.0]
    with RunRequests([60.0], clock=lambda: now[0]) as requests:
        now[0] = 1000.0
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.requested() is StopReason.SIGINT
