import os
import signal

import pytest
import torch

from longvita.processes import EXIT_COMPLETE, EXIT_REFUSED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT
from longvita.training.signals import StopReason, StopRequests


def test_exit_codes_differ():
    codes = [EXIT_COMPLETE, EXIT_REFUSED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_TIME_LIMIT]
    assert codes == [0, 2, 76, 75, 77]
    assert [StopReason(number).exit_code for number in range(4)] == [0, 77, 76, 75]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, StopReason.SIGTERM), (signal.SIGINT, StopReason.SIGINT)]
)
def test_signals_are_recorded_and_handlers_restored(number, reason):
    before = signal.getsignal(number)
    with StopRequests(None) as requests:
        assert requests.requested is StopReason.NONE
        os.kill(os.getpid(), number)
        assert requests.requested is reason
        os.kill(os.getpid(), number)
        assert requests.requested is reason
    assert signal.getsignal(number) is before


def test_signals_are_ignored_once_the_ranks_have_agreed_to_stop(monkeypatch):
    """A rank that ends a moment after the first is sent SIGTERM by srun -K1, and still ends with its own code."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with StopRequests(None) as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.agree(torch.device("cpu")) is StopReason.SIGTERM
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_time_limit():
    now = [100.0]
    requests = StopRequests(2.0, clock=lambda: now[0])
    now[0] += 119.9
    assert requests.requested is StopReason.NONE
    now[0] += 0.1
    assert requests.requested is StopReason.TIME_LIMIT


def test_a_signal_has_precedence_over_the_time_limit():
    now = [0.0]
    with StopRequests(1.0, clock=lambda: now[0]) as requests:
        now[0] = 1000.0
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.requested is StopReason.SIGINT
